// See distance.h. Sums are float64: at 4,096 square in float32 that still takes 1.04 times as long as torch.dot's one
// read of both (benchmarks/results/cpu-avx2/kernels.json).
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

struct Square {
  template <typename S, typename V>
  static MCF_INLINE_MEMBER void add(S& sum, const V& d) {
    sum.add_square(d);
  }
  static MCF_INLINE_MEMBER double of(double d) { return d * d; }
};

struct Absolute {
  template <typename S, typename V>
  static MCF_INLINE_MEMBER void add(S& sum, const V& d) {
    sum.add(d < 0 ? -d : d);
  }
  static MCF_INLINE_MEMBER double of(double d) { return __builtin_fabs(d); }
};

template <typename T, typename Term>
double distance_sum(const T* A, const T* B, int64_t n) {
  constexpr int lanes = Simd<T>::lanes, unroll = 4;
  Sum<T> sums[unroll];
  int64_t i = 0;
  for (; i + unroll * lanes <= n; i += unroll * lanes)
    for (int u = 0; u < unroll; ++u) Term::add(sums[u], difference(A + i + u * lanes, B + i + u * lanes));
  double sum = 0;
  for (int u = 0; u < unroll; ++u) sum += sums[u].total();
  for (; i < n; ++i) sum += Term::of(static_cast<double>(A[i] - B[i]));
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
  return {distance_sum<T, Square>, distance_sum<T, Absolute>, distance_largest<T>};
}

}  // namespace MCF_ISA
}  // namespace mcf
