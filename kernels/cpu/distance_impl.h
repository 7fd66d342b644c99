// See distance.h. Memory-bound from the second cache on: float64 accumulation costs nothing there.
#pragma once

#include "distance.h"
#include "simd.h"

namespace mcf {
namespace MCF_ISA {

template <typename T>
MCF_INLINE Vec<T> difference(const T* A, const T* B) {
  Vec<T> a, b;
  __builtin_memcpy(&a, A, sizeof(a));
  __builtin_memcpy(&b, B, sizeof(b));
  return a - b;
}

template <typename T>
double distance_squares(const T* A, const T* B, int64_t n) {
  constexpr int lanes = Simd<T>::lanes, unroll = 4;
  Sum<T> sums[unroll];
  int64_t i = 0;
  for (; i + unroll * lanes <= n; i += unroll * lanes)
    for (int u = 0; u < unroll; ++u) sums[u].add_square(difference(A + i + u * lanes, B + i + u * lanes));
  double sum = 0;
  for (int u = 0; u < unroll; ++u) sum += sums[u].total();
  for (; i < n; ++i) {
    const double d = static_cast<double>(A[i] - B[i]);
    sum += d * d;
  }
  return sum;
}

template <typename T>
double distance_absolute(const T* A, const T* B, int64_t n) {
  constexpr int lanes = Simd<T>::lanes, unroll = 4;
  Sum<T> sums[unroll];
  int64_t i = 0;
  for (; i + unroll * lanes <= n; i += unroll * lanes)
    for (int u = 0; u < unroll; ++u) {
      const Vec<T> d = difference(A + i + u * lanes, B + i + u * lanes);
      sums[u].add(d < 0 ? -d : d);
    }
  double sum = 0;
  for (int u = 0; u < unroll; ++u) sum += sums[u].total();
  for (; i < n; ++i) sum += __builtin_fabs(static_cast<double>(A[i] - B[i]));
  return sum;
}

template <typename T>
double distance_largest(const T* A, const T* B, int64_t n) {
  constexpr int lanes = Simd<T>::lanes;
  Vec<T> high = {}, nan = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const Vec<T> d = difference(A + i, B + i), size = d < 0 ? -d : d;
    high = size > high ? size : high;
    nan = d == d ? nan : d;
  }
  double largest = 0;
  bool undefined = false;
  for (int l = 0; l < lanes; ++l) {
    largest = high[l] > largest ? high[l] : largest;
    undefined |= nan[l] != nan[l];
  }
  for (; i < n; ++i) {
    const double d = __builtin_fabs(static_cast<double>(A[i] - B[i]));
    largest = d > largest ? d : largest;
    undefined |= d != d;
  }
  return undefined ? __builtin_nan("") : largest;
}

template <typename T>
constexpr DistanceKernels<T> distance_kernels() {
  return {distance_squares<T>, distance_absolute<T>, distance_largest<T>};
}

}  // namespace MCF_ISA
}  // namespace mcf
