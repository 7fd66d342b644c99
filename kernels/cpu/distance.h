// Distance of two contiguous arrays in one pass. The caller combines the results of fixed blocks in order.
#pragma once

#include <cstdint>

namespace mcf {

template <typename T>
struct DistanceKernels {                                  // each over n elements of A and B, in float64
  double (*squares)(const T* A, const T* B, int64_t n);   // sum (a - b)^2
  double (*absolute)(const T* A, const T* B, int64_t n);  // sum |a - b|
  double (*largest)(const T* A, const T* B, int64_t n);   // max |a - b|, NaN if there is one, 0 of nothing
};

}  // namespace mcf
