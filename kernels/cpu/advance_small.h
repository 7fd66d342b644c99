// Algorithm `small`: n, p <= 16 and at most 24 rows, sizes known to the compiler, M padded to them with zeros.
//
// In the general code for slabs half of an iteration at 8 x 8 is loop counts and divisions: 120 ns, and 60 here (Zen
// 3). Fully unrolled, the loop over 16 terms is half as fast as unrolled by two. Two chains of additions for each
// element would take 49 ns at 8 x 8, but would round differently from the same problem in a lane.
#pragma once

#include "advance_blocks.h"
#include "microkernel.h"
#include "rules.h"

namespace mcf {
namespace MCF_ISA {

constexpr int64_t kSmallSlabs = 2;  // at most

// A B for the rows of A [rows, A_width], B [K, width]: start_of(k) gives the initial accumulator of the vector at k of
// the product, finish(k, acc) receives the final one, and block(acc) receives a whole block of them.
template <typename T, int K, int A_width, int width, typename Start, typename Finish, typename Block>
MCF_INLINE void small_product(const T* A, const T* B, int64_t rows, const Start& start_of, const Finish& finish,
                              const Block& block) {
  constexpr int lanes = Simd<T>::lanes, NV = width > lanes ? 2 : 1, R = NV == 1 ? 8 : 4;
  for (int64_t row = 0; row < rows; row += R)
    for (int column = 0; column < width; column += NV * lanes) {
      Vec<T> acc[R][NV];
      for (int i = 0; i < R; ++i)
        for (int h = 0; h < NV; ++h) acc[i][h] = start_of((row + i) * width + column + h * lanes);
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k)
        for (int i = 0; i < R; ++i) {
          const Vec<T> a = A[(row + i) * A_width + k] - Vec<T>{};
          for (int h = 0; h < NV; ++h) acc[i][h] += a * at(B + k * width + column + h * lanes);
        }
      for (int i = 0; i < R; ++i)
        for (int h = 0; h < NV; ++h) finish((row + i) * width + column + h * lanes, acc[i][h]);
      block(acc);
    }
}

// A slab of rows, padded with zeros.
template <typename T, int N, int P, class Rule>
struct SmallSlab {
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int n_pad = N > lanes ? N : lanes, p_pad = P > lanes ? P : lanes;
  static constexpr int capacity = kSmallRows;             // a multiple of the rows of a block, 4 or 8
  static constexpr int pitch = capacity * n_pad / lanes;  // vectors from X to its first state, and so on
  alignas(64) T x[(1 + Rule::states) * capacity * n_pad] = {}, y[capacity * p_pad] = {}, r[capacity * p_pad] = {};
  int64_t rows = 0;

  // Calls f(element of the padded matrix, element of the problem's) for the slab's rows.
  template <typename F>
  void for_elements(int64_t begin, int64_t columns, int padded_columns, const F& f) const {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) f(i * padded_columns + j, (begin + i) * columns + j);
  }
  void load(const Descent<T>& q, Rows part) {
    rows = part.count();
    for_elements(part.begin, q.n, n_pad, [&](int64_t i, int64_t k) {
      x[i] = q.X[k];
      for (int s = 0; s < Rule::states; ++s) x[(s + 1) * capacity * n_pad + i] = q.state[s][k];
    });
    for_elements(part.begin, q.p, p_pad, [&](int64_t i, int64_t k) { y[i] = q.Y[k]; });
  }
  void store(const Descent<T>& q, Rows part) const {
    for_elements(part.begin, q.n, n_pad, [&](int64_t i, int64_t k) {
      q.X[k] = x[i];
      for (int s = 0; s < Rule::states; ++s) q.state[s][k] = x[(s + 1) * capacity * n_pad + i];
    });
  }

  MCF_INLINE_MEMBER double residual(const Descent<T>& q, const T* a) {
    Sum<T> sum;
    small_product<T, N, n_pad, p_pad>(
        x, a, rows, [&](int64_t i) { return -at(y + i); }, [&](int64_t i, const Vec<T>& acc) { at(r + i) = acc; },
        [&](auto& acc) { sum.add(squares<T>(acc)); });
    const double total = sum.total();
    if (safe_total<T>(total)) return total;
    double wide = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < q.p; ++j) wide += static_cast<double>(r[i * p_pad + j]) * r[i * p_pad + j];
    return wide;
  }
  MCF_INLINE_MEMBER void update(const Descent<T>& q, const T* b, const Rule& rule) {
    small_product<T, P, p_pad, n_pad>(
        r, b, rows, [&](int64_t i) { return start(rule, at(x + pitch * lanes + i)); },
        [&](int64_t i, const Vec<T>& acc) { finish_at(rule, acc, &at(x + i), pitch); }, [](auto&) {});
    if constexpr (!Rule::keeps_zeros)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = q.n; j < n_pad; ++j) x[i * n_pad + j] = T(0);
  }
};

// `count` slabs of the problem.
template <typename T, int N, int P, class Rule>
int64_t iterate_small(const Descent<T>& q, const Rows* parts, int64_t count) {
  typedef SmallSlab<T, N, P, Rule> Slab;
  alignas(64) T a[N * Slab::p_pad] = {}, b[P * Slab::n_pad] = {};
  for (int64_t i = 0; i < q.n; ++i)
    for (int64_t j = 0; j < q.p; ++j) {
      a[i * Slab::p_pad + j] = q.M[i * q.p + j];
      b[j * Slab::n_pad + i] = q.scale * q.M[i * q.p + j];
    }
  Slab slabs[kSmallSlabs];
  for (int64_t i = 0; i < count; ++i) slabs[i].load(q, parts[i]);

  Rule rule = {};
  begin_run(rule, q);
  int64_t j = 0;
  for (;; ++j) {
    if (j == q.limit && !q.last_sum) break;
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += slabs[i].residual(q, a);
    if (q.ends(j, total)) break;
    if (q.coupled) {
      const T scale = q.over_norm(total);
      for (int64_t i = 0; i < count; ++i)
        for (T& r : slabs[i].r) r *= scale;
    }
    begin_step(rule, q, j);
    for (int64_t i = 0; i < count; ++i) slabs[i].update(q, b, rule);
  }
  for (int64_t i = 0; i < count; ++i) slabs[i].store(q, parts[i]);
  return j;
}

template <typename T, class Rule>
int64_t small_of_size(const Descent<T>& q, const Rows* parts, int64_t count) {
  if (q.n <= 8)
    return q.p <= 8 ? iterate_small<T, 8, 8, Rule>(q, parts, count) : iterate_small<T, 8, 16, Rule>(q, parts, count);
  return q.p <= 8 ? iterate_small<T, 16, 8, Rule>(q, parts, count) : iterate_small<T, 16, 16, Rule>(q, parts, count);
}

}  // namespace MCF_ISA
}  // namespace mcf
