// The residual of one small problem, its squares and its products, on one thread.
#pragma once

#include <cstdint>

namespace mcf {

template <typename T>
struct ResidualProducts {  // all contiguous; an output that is null is not computed
  const T *X, *M, *Y;      // [m, n], [n, p], [m, p]
  bool product;            // whether there is an M
  int64_t m, n, p;
  T *R_Mt, *Xt_R, *R;  // [m, n], [n, p], [m, p]
};

template <typename T>
struct LossKernels {
  int64_t (*workspace_elements)(int64_t m, int64_t n, int64_t p);
  double (*residual)(const ResidualProducts<T>& problem, T* workspace);  // sum R^2; workspace is aligned to 64 bytes
};

}  // namespace mcf
