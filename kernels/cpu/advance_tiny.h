// Heavy ball with m, n, p <= 4: the whole problem in registers.
//
// A vector holds as many 4-wide rows as fit. An element of a row reaches the other columns by a shuffle inside its
// group of four lanes, one cycle, where a store and a broadcasting load would take eight.
#pragma once

#include "advance.h"
#include "simd.h"

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

template <typename T>
MCF_INLINE int64_t tiny(const Descent<T>& q) {
  typedef Tiny<T> S;
  typedef typename S::Vec V4;
  V4 x[S::count], v[S::count], minus_y[S::count], m[4], mt[4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int vec = i / S::rows, lane = i % S::rows * 4 + j;
      x[vec][lane] = i < q.m && j < q.n ? q.X[i * q.n + j] : T(0);
      v[vec][lane] = i < q.m && j < q.n ? q.V[i * q.n + j] : T(0);
      minus_y[vec][lane] = i < q.m && j < q.p ? -q.Y[i * q.p + j] : T(0);
      for (int row = 0; row < S::rows; ++row) {
        m[i][row * 4 + j] = i < q.n && j < q.p ? q.M[i * q.p + j] : T(0);
        mt[i][row * 4 + j] = i < q.p && j < q.n ? q.scale * q.M[j * q.p + i] : T(0);
      }
    }
  int64_t k = 0;
  for (;; ++k) {
    if (k == q.limit && !q.last_sum) break;
    V4 r[S::count], square = {};
#pragma GCC unroll 4
    for (int i = 0; i < S::count; ++i) {
      r[i] = tiny_product<T>(x[i], m, minus_y[i]);
      square += r[i] * r[i];
    }
    WideSum<T, S::lanes> sum;
    sum.add(square);
    double total = sum.total();
    if (!safe_total<T>(total)) {  // without the padding, whose zeros times an infinity are NaN
      total = 0;
      for (int i = 0; i < q.m; ++i)
        for (int j = 0; j < q.p; ++j) {
          const double entry = r[i / S::rows][i % S::rows * 4 + j];
          total += entry * entry;
        }
    }
    if (q.ends(k, total)) break;
#pragma GCC unroll 4
    for (int i = 0; i < S::count; ++i) {
      v[i] = tiny_product<T>(r[i], mt, q.momentum * v[i]);
      x[i] -= q.lr * v[i];
    }
  }
  for (int i = 0; i < q.m; ++i)
    for (int j = 0; j < q.n; ++j) {
      q.X[i * q.n + j] = x[i / S::rows][i % S::rows * 4 + j];
      q.V[i * q.n + j] = v[i / S::rows][i % S::rows * 4 + j];
    }
  return k;
}

}  // namespace MCF_ISA
}  // namespace mcf
