// One pass over memory that lies in one piece, between or after the products of torch's GEMM.
#pragma once

#include <cstdint>

#include "advance.h"

namespace mcf {

template <typename T>
struct SweepKernels {
  double (*residual)(T* R, const T* Y, int64_t n);     // R = R - Y; sum R^2
  void (*descend)(T* X, const T* V, T lr, int64_t n);  // X = X - lr V
  // Adam's update number j of the problem, on n elements of its matrices, G the gradient
  void (*adam)(const Descent<T>& problem, int64_t j, T* X, T* V, T* S, const T* G, int64_t n);
};

}  // namespace mcf
