// See sweep.h.
#pragma once

#include "advance_rules.h"
#include "sweep.h"

namespace mcf {
namespace MCF_ISA {

// Unaligned, and not beyond what there is.
template <typename T>
MCF_INLINE Vec<T> some(const T* p, int64_t count) {
  Vec<T> v = {};
  if (count >= Simd<T>::lanes)
    __builtin_memcpy(&v, p, sizeof(v));
  else
    __builtin_memcpy(&v, p, count * sizeof(T));
  return v;
}

template <typename T>
MCF_INLINE void put(const Vec<T>& v, T* p, int64_t count) {
  if (count >= Simd<T>::lanes)
    __builtin_memcpy(p, &v, sizeof(v));
  else
    __builtin_memcpy(p, &v, count * sizeof(T));
}

template <typename T>
double sweep_residual(T* R, const T* Y, int64_t n) {
  constexpr int lanes = Simd<T>::lanes, group = 4;
  Sum<T> sum;
  int64_t k = 0;
  for (; k + group * lanes <= n; k += group * lanes) {
    Vec<T> d[group][1];
    for (int g = 0; g < group; ++g) {
      d[g][0] = some(R + k + g * lanes, lanes) - some(Y + k + g * lanes, lanes);
      put(d[g][0], R + k + g * lanes, lanes);
    }
    sum.add(squares<T>(d));
  }
  for (; k < n; k += lanes) {
    const Vec<T> d = some(R + k, n - k) - some(Y + k, n - k);
    put(d, R + k, n - k);
    sum.add_square(d);
  }
  if (safe_total<T>(sum.total())) return sum.total();
  Sum<T> again;
  for (k = 0; k < n; k += lanes) again.add_square(some(R + k, n - k));
  return again.total();
}

template <typename T>
void sweep_descend(T* X, const T* V, T lr, int64_t n) {
  for (int64_t k = 0; k < n; k += Simd<T>::lanes) put(some(X + k, n - k) - lr * some(V + k, n - k), X + k, n - k);
}

template <typename T>
void sweep_adam(const Descent<T>& q, int64_t j, T* X, T* V, T* S, const T* G, int64_t n) {
  constexpr int lanes = Simd<T>::lanes;
  Adam<T> rule(q);
  rule.begin(j);
  alignas(64) T x[lanes], v[lanes], s[lanes], g[lanes];
  for (int64_t k = 0; k < n; k += lanes) {
    at(x) = some(X + k, n - k), at(v) = some(V + k, n - k), at(s) = some(S + k, n - k), at(g) = some(G + k, n - k);
    rule.update(at(g), x, v, s);
    put(at(x), X + k, n - k), put(at(v), V + k, n - k), put(at(s), S + k, n - k);
  }
}

template <typename T>
constexpr SweepKernels<T> sweep_kernels() {
  return {sweep_residual<T>, sweep_descend<T>, sweep_adam<T>};
}

}  // namespace MCF_ISA
}  // namespace mcf
