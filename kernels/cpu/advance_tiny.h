// Algorithm `tiny`: m, n, p <= 4, the whole problem in registers.
//
// A vector holds as many rows of four as fit. An element of a row reaches the other columns by a shuffle inside its
// group of four lanes, which takes one cycle; a store and a broadcasting load would take eight.
#pragma once

#include "rules.h"

namespace mcf {
namespace MCF_ISA {

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define MCF_SPREAD4(v, q) __builtin_shufflevector(v, v, q, q, q, q)
#define MCF_SPREAD8(v, q) __builtin_shufflevector(v, v, q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q)
#define MCF_SPREAD16(v, q)                                                                                          \
  __builtin_shufflevector(v, v, q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q, 8 + q, 8 + q, 8 + q, 8 + q, 12 + q, 12 + q, \
                          12 + q, 12 + q)
#else
#define MCF_SPREAD4(v, q) __builtin_shuffle(v, typename Tiny<T>::Mask{q, q, q, q})
#define MCF_SPREAD8(v, q) __builtin_shuffle(v, typename Tiny<T>::Mask{q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q})
#define MCF_SPREAD16(v, q)                                                                                        \
  __builtin_shuffle(v, typename Tiny<T>::Mask{q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q, 8 + q, 8 + q, 8 + q, 8 + q, \
                                              12 + q, 12 + q, 12 + q, 12 + q})
#endif

template <int Bytes>
struct IntOfSize;
template <>
struct IntOfSize<4> {
  typedef int type;
};
template <>
struct IntOfSize<8> {
  typedef long long type;
};

template <typename T>
struct Tiny {
  static constexpr int rows = Simd<T>::lanes < 4 ? 1 : Simd<T>::lanes / 4;  // rows in one vector
  static constexpr int lanes = 4 * rows;
  static constexpr int count = 4 / rows;  // vectors that hold four rows
  using Vec = typename Vector<T, lanes>::Type;
  using Mask = typename Vector<typename IntOfSize<sizeof(T)>::type, lanes>::Type;
};

// v's rows times the 4 x 4 matrix whose rows b repeats: two chains of two, for half the latency of one of four.
template <typename T>
MCF_INLINE typename Tiny<T>::Vec tiny_product(const typename Tiny<T>::Vec& v, const typename Tiny<T>::Vec (&b)[4],
                                              const typename Tiny<T>::Vec& start) {
  typename Tiny<T>::Vec even, odd;
  if constexpr (Tiny<T>::lanes == 4) {
    even = MCF_SPREAD4(v, 0) * b[0] + start, odd = MCF_SPREAD4(v, 1) * b[1];
    even += MCF_SPREAD4(v, 2) * b[2], odd += MCF_SPREAD4(v, 3) * b[3];
  } else if constexpr (Tiny<T>::lanes == 8) {
    even = MCF_SPREAD8(v, 0) * b[0] + start, odd = MCF_SPREAD8(v, 1) * b[1];
    even += MCF_SPREAD8(v, 2) * b[2], odd += MCF_SPREAD8(v, 3) * b[3];
  } else {
    even = MCF_SPREAD16(v, 0) * b[0] + start, odd = MCF_SPREAD16(v, 1) * b[1];
    even += MCF_SPREAD16(v, 2) * b[2], odd += MCF_SPREAD16(v, 3) * b[3];
  }
  return even + odd;
}

template <typename T, template <typename, typename> class RuleOf>
__attribute__((aligned(64))) int64_t tiny(const Descent<T>& q, const T*, T*) {
  typedef Tiny<T> S;
  typedef typename S::Vec V4;
  typedef RuleOf<V4, T> Rule;
  V4 x[S::count], state[S::count][Rule::states], minus_y[S::count], live[S::count], m[4], mt[4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int vec = i / S::rows, lane = i % S::rows * 4 + j;
      const bool inside = i < q.m && j < q.n;
      live[vec][lane] = inside ? T(1) : T(0);
      x[vec][lane] = inside ? q.X[i * q.n + j] : T(0);
      for (int k = 0; k < Rule::states; ++k) state[vec][k][lane] = inside ? q.state[k][i * q.n + j] : T(0);
      minus_y[vec][lane] = i < q.m && j < q.p ? -q.Y[i * q.p + j] : T(0);
      for (int row = 0; row < S::rows; ++row) {
        m[i][row * 4 + j] = i < q.n && j < q.p ? q.M[i * q.p + j] : T(0);
        mt[i][row * 4 + j] = i < q.p && j < q.n ? q.scale * q.M[j * q.p + i] : T(0);
      }
    }
  Rule rule = {};
  begin_run(rule, q);
  int64_t j = 0;
  for (;; ++j) {
    if (j == q.limit && !q.last_sum) break;
    V4 r[S::count], square = {};
#pragma GCC unroll 4
    for (int i = 0; i < S::count; ++i) {
      r[i] = tiny_product<T>(x[i], m, minus_y[i]);
      square += r[i] * r[i];
    }
    WideSum<T, S::lanes> sum;
    sum.add(square);
    double total = sum.total();
    // The branch hints keep an iteration contiguous in memory: without them it takes 4 % more time.
    const bool safe = safe_total<T>(total);
    if (__builtin_expect(!safe, 0)) {  // without the padding, whose zeros times an infinity are NaN
      total = 0;
      for (int i = 0; i < q.m; ++i)
        for (int k = 0; k < q.p; ++k) {
          const double entry = r[i / S::rows][i % S::rows * 4 + k];
          total += entry * entry;
        }
    }
    const bool ends = q.ends(j, total);
    if (__builtin_expect(ends, 0)) break;
    begin_step(rule, q, j);
#pragma GCC unroll 4
    for (int i = 0; i < S::count; ++i) {
      rule.finish(tiny_product<T>(r[i], mt, start(rule, state[i][0])), x[i], state[i]);
      if constexpr (!Rule::keeps_zeros) x[i] = live[i] != 0 ? x[i] : V4{};
    }
  }
  for (int i = 0; i < q.m; ++i)
    for (int k = 0; k < q.n; ++k) {
      const int vec = i / S::rows, lane = i % S::rows * 4 + k;
      q.X[i * q.n + k] = x[vec][lane];
      for (int s = 0; s < Rule::states; ++s) q.state[s][i * q.n + k] = state[vec][s][lane];
    }
  return j;
}

}  // namespace MCF_ISA
}  // namespace mcf
