// The kernels of one instruction set, and the instruction sets there are.
#pragma once

#include "advance.h"
#include "direct.h"
#include "distance.h"
#include "loss.h"
#include "sweep.h"

namespace mcf {

template <typename T>
struct TypedKernels {
  AdvanceKernels<T> advance;
  DistanceKernels<T> distance;
  LossKernels<T> loss;
  SweepKernels<T> sweep;
  DirectKernels<T> direct;
};

struct Kernels {
  const char* name;
  int vector_bytes;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
};

const Kernels& generic_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace mcf
