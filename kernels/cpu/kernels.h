// The kernels of one instruction set, and the sets that there are.
#pragma once

#include "distance.h"
#include "heavy_ball.h"

namespace mcf {

template <typename T>
struct TypedKernels {
  HeavyBallKernels<T> heavy_ball;
  DistanceKernels<T> distance;
};

struct Kernels {
  const char* name;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
};

const Kernels& generic_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace mcf
