// The heavy ball on a problem with n, p <= 16 and few rows: sizes known to the compiler, M padded to them with
// zeros. See advance.h.
//
// In the slabs' general code half of an iteration at 8 x 8 is loop counts and divisions: 120 ns, and 60 here (Zen 3).
// Unrolled whole, the loop over 16 terms is half as fast as by twos. Two chains of additions for each element would
// take 49 at 8 x 8, but round otherwise than a problem of the same numbers does in a lane.
#pragma once

#include "advance_tiny.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

constexpr int64_t kSmallRows = 24, kSmallSlabs = 2;  // at most
constexpr int64_t kSmallColumns = 16;

// A B for the rows of A [rows, A_width], B [K, width]: start(k) gives the accumulator of the vector at k of the
// product, finish(k, acc) takes it, and block(acc) sees a whole block of them.
template <typename T, int K, int A_width, int width, typename Start, typename Finish, typename Block>
MCF_INLINE void small_product(const T* A, const T* B, int64_t rows, const Start& start, const Finish& finish,
                              const Block& block) {
  constexpr int lanes = Simd<T>::lanes, NV = width > lanes ? 2 : 1, R = NV == 1 ? 8 : 4;
  for (int64_t row = 0; row < rows; row += R)
    for (int column = 0; column < width; column += NV * lanes) {
      Vec<T> acc[R][NV];
      for (int i = 0; i < R; ++i)
        for (int h = 0; h < NV; ++h) acc[i][h] = start((row + i) * width + column + h * lanes);
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

// A slab of rows, with zeros around it.
template <typename T, int N, int P>
struct SmallSlab {
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int n_pad = N > lanes ? N : lanes, p_pad = P > lanes ? P : lanes;
  static constexpr int room = kSmallRows;  // a multiple of the rows of a block, 4 or 8
  alignas(64) T x[room * n_pad] = {}, v[room * n_pad] = {}, y[room * p_pad] = {}, r[room * p_pad] = {};
  int64_t rows = 0;

  void load(const Descent<T>& q, Rows part) {
    rows = part.count();
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = part.begin + i;
      for (int64_t j = 0; j < q.n; ++j) x[i * n_pad + j] = q.X[row * q.n + j], v[i * n_pad + j] = q.V[row * q.n + j];
      for (int64_t j = 0; j < q.p; ++j) y[i * p_pad + j] = q.Y[row * q.p + j];
    }
  }
  void store(const Descent<T>& q, Rows part) const {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = part.begin + i;
      for (int64_t j = 0; j < q.n; ++j) q.X[row * q.n + j] = x[i * n_pad + j], q.V[row * q.n + j] = v[i * n_pad + j];
    }
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
  MCF_INLINE_MEMBER void update(const Descent<T>& q, const T* b) {
    small_product<T, P, p_pad, n_pad>(
        r, b, rows, [&](int64_t i) { return q.momentum * at(v + i); },
        [&](int64_t i, const Vec<T>& acc) { at(v + i) = acc, at(x + i) -= q.lr * acc; }, [](auto&) {});
  }
};

// So many slabs of the problem.
template <typename T, int N, int P>
int64_t small(const Descent<T>& q, const Rows* parts, int64_t count) {
  typedef SmallSlab<T, N, P> Slab;
  alignas(64) T a[N * Slab::p_pad] = {}, b[P * Slab::n_pad] = {};
  for (int64_t i = 0; i < q.n; ++i)
    for (int64_t j = 0; j < q.p; ++j) {
      a[i * Slab::p_pad + j] = q.M[i * q.p + j];
      b[j * Slab::n_pad + i] = q.scale * q.M[i * q.p + j];
    }
  Slab slabs[kSmallSlabs];
  for (int64_t i = 0; i < count; ++i) slabs[i].load(q, parts[i]);

  int64_t k = 0;
  for (;; ++k) {
    if (k == q.limit && !q.last_sum) break;
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += slabs[i].residual(q, a);
    if (q.ends(k, total)) break;
    if (q.unit) {
      const T scale = q.over_norm(total);
      for (int64_t i = 0; i < count; ++i)
        for (T& r : slabs[i].r) r *= scale;
    }
    for (int64_t i = 0; i < count; ++i) slabs[i].update(q, b);
  }
  for (int64_t i = 0; i < count; ++i) slabs[i].store(q, parts[i]);
  return k;
}

template <typename T>
MCF_INLINE bool is_small(const Descent<T>& q) {
  return q.product && q.m <= kSmallRows && q.n <= kSmallColumns && q.p <= kSmallColumns;
}

template <typename T>
int64_t small_of_size(const Descent<T>& q, const Rows* parts, int64_t count) {
  if (q.n <= 8) return q.p <= 8 ? small<T, 8, 8>(q, parts, count) : small<T, 8, 16>(q, parts, count);
  return q.p <= 8 ? small<T, 16, 8>(q, parts, count) : small<T, 16, 16>(q, parts, count);
}

}  // namespace MCF_ISA
}  // namespace mcf
