// Heavy ball in residual form: one problem, many iterations, no allocation. See heavy_ball_impl.h for the formula.
#pragma once

#include <cstdint>

namespace mcf {

// One contiguous problem. X [m, n] and V [m, n] are updated in place; M [n, p] and Y [m, p] are read.
template <typename T>
struct HeavyBall {
  T* X;
  T* V;
  const T* M;
  const T* Y;
  int64_t m, n, p;
  T lr, momentum, scale;   // the gradient is scale * R @ M.T
  int64_t limit;           // run at most this many updates
  double threshold, bail;  // stop at the first iterate with ||R||^2 <= threshold, or not <= bail
  double* sums;            // [limit + 1]: ||R||^2 of every iterate visited, the last one included
  int64_t taken;           // updates made
};

// What one instruction set offers. workspace: elements of T, aligned to 64 bytes, for a problem of m, n, p.
struct Kernels {
  const char* name;
  int64_t (*heavy_ball_workspace_f32)(int64_t m, int64_t n, int64_t p);
  int64_t (*heavy_ball_workspace_f64)(int64_t m, int64_t n, int64_t p);
  void (*heavy_ball_f32)(HeavyBall<float>* problem, float* workspace);
  void (*heavy_ball_f64)(HeavyBall<double>* problem, double* workspace);
};

const Kernels& generic_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace mcf
