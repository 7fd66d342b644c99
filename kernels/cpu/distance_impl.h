// See distance.h. Sums are float64: at 4,096 square in float32 a distance still takes as long as torch.dot, which reads
// both once, within 3 % (benchmarks/results/cpu-avx2/bench.json).
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

// Eight vectors are added in T before the sum continues in float64, as in `squares`. That takes 5 % less time than four
// at 2,048 square, which fits the third cache.
template <typename T>
double distance_squares(const T* A, const T* B, int64_t n) {
  constexpr int lanes = Simd<T>::lanes, group = 8;
  Sum<T> sums[2];
  int64_t i = 0;
  const auto add = [&](Sum<T>& sum, int64_t k) {
    Vec<T> d[group][1];
    for (int g = 0; g < group; ++g) d[g][0] = difference(A + k + g * lanes, B + k + g * lanes);
    sum.add(squares<T>(d));
  };
  for (; i + 2 * group * lanes <= n; i += 2 * group * lanes) add(sums[0], i), add(sums[1], i + group * lanes);
  double sum = sums[0].total() + sums[1].total();
  if (!safe_total<T>(sum)) {
    Sum<T> wide;
    for (int64_t k = 0; k < i; k += lanes) wide.add_square(difference(A + k, B + k));
    sum = wide.total();
  }
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

}  // namespace MCF_ISA
}  // namespace mcf
