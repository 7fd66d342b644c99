// One pass over contiguous memory after a product of torch's GEMM. A rule's pass is in RuleKernels.
#pragma once

#include <cstdint>

namespace mcf {

template <typename T>
struct SweepKernels {
  double (*residual)(T* R, const T* Y, int64_t n);  // R = R - Y; returns sum R^2
};

}  // namespace mcf
