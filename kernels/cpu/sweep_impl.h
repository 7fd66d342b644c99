// Algorithm `gemm`: what follows each product of torch's GEMM. See sweep.h.
#pragma once

#include "rules.h"
#include "sweep.h"

namespace mcf {
namespace MCF_ISA {

// At most `count` elements, from and to unaligned memory.
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
  Sum<T> wide;
  for (k = 0; k < n; k += lanes) wide.add_square(some(R + k, n - k));
  return wide.total();
}

// See RuleKernels::sweep.
template <typename T, template <typename, typename> class RuleOf>
void sweep_rule(const Descent<T>& q, int64_t j, const T* G, int64_t begin, int64_t count) {
  typedef RuleOf<Vec<T>, T> Rule;
  constexpr int lanes = Simd<T>::lanes;
  Rule rule = {};
  begin_run(rule, q);
  begin_step(rule, q, j);
  for (int64_t k = begin; k < begin + count; k += lanes) {
    const int64_t left = begin + count - k;
    Vec<T> x = some(q.X + k, left), state[Rule::states];
#pragma GCC unroll 4
    for (int s = 0; s < Rule::states; ++s) state[s] = some(q.state[s] + k, left);
    rule.finish(Rule::accumulates ? state[0] : some(G + k, left), x, state);
    put(x, q.X + k, left);
#pragma GCC unroll 4
    for (int s = Rule::accumulates; s < Rule::states; ++s) put(state[s], q.state[s] + k, left);
  }
}

template <typename T, template <typename, typename> class RuleOf>
T decay_of(const Descent<T>& q) {
  typedef RuleOf<Vec<T>, T> Rule;
  if constexpr (Rule::accumulates) {
    Rule rule = {};
    rule.begin(q.hyper, q.step + 1, 0);
    return rule.decay();
  }
  return 0;
}

}  // namespace MCF_ISA
}  // namespace mcf
