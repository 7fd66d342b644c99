// The heavy ball on a problem with n, p <= 16 and few rows: sizes known to the compiler, M padded to them with
// zeros. See advance.h.
//
// In the slabs' general code half of an iteration at 8 x 8 is loop counts and divisions: 120 ns, and 60 here (Zen 3).
// Unrolled whole, the loop over 16 terms is half as fast as by twos.
#pragma once

#include "advance_tiny.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

constexpr int64_t kSmallRows = 24;  // at most; one slab
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

template <typename T, int N, int P>
int64_t small(const Descent<T>& q) {
  constexpr int lanes = Simd<T>::lanes;
  constexpr int n_pad = N > lanes ? N : lanes, p_pad = P > lanes ? P : lanes;
  constexpr int rows = kSmallRows;  // a multiple of the rows of a block, 4 or 8
  alignas(64) T x[rows * n_pad] = {}, v[rows * n_pad] = {}, y[rows * p_pad] = {}, r[rows * p_pad] = {};
  alignas(64) T a[N * p_pad] = {}, b[P * n_pad] = {};
  for (int64_t i = 0; i < q.m; ++i)
    for (int64_t j = 0; j < q.n; ++j) x[i * n_pad + j] = q.X[i * q.n + j], v[i * n_pad + j] = q.V[i * q.n + j];
  for (int64_t i = 0; i < q.m; ++i)
    for (int64_t j = 0; j < q.p; ++j) y[i * p_pad + j] = q.Y[i * q.p + j];
  for (int64_t i = 0; i < q.n; ++i)
    for (int64_t j = 0; j < q.p; ++j)
      a[i * p_pad + j] = q.M[i * q.p + j], b[j * n_pad + i] = q.scale * q.M[i * q.p + j];

  int64_t k = 0;
  for (;; ++k) {
    if (k == q.limit && !q.last_sum) break;
    Sum<T> sum;
    small_product<T, N, n_pad, p_pad>(
        x, a, q.m, [&](int64_t i) { return -at(y + i); }, [&](int64_t i, const Vec<T>& acc) { at(r + i) = acc; },
        [&](auto& acc) { sum.add(squares<T>(acc)); });
    double total = sum.total();
    if (!safe_total<T>(total)) {
      total = 0;
      for (int64_t i = 0; i < q.m; ++i)
        for (int64_t j = 0; j < q.p; ++j) total += static_cast<double>(r[i * p_pad + j]) * r[i * p_pad + j];
    }
    if (q.ends(k, total)) break;
    if (q.unit) {
      const T scale = q.over_norm(total);
      for (int i = 0; i < rows * p_pad; ++i) r[i] *= scale;
    }
    small_product<T, P, p_pad, n_pad>(
        r, b, q.m, [&](int64_t i) { return q.momentum * at(v + i); },
        [&](int64_t i, const Vec<T>& acc) { at(v + i) = acc, at(x + i) -= q.lr * acc; }, [](auto&) {});
  }
  for (int64_t i = 0; i < q.m; ++i)
    for (int64_t j = 0; j < q.n; ++j) q.X[i * q.n + j] = x[i * n_pad + j], q.V[i * q.n + j] = v[i * n_pad + j];
  return k;
}

template <typename T>
MCF_INLINE bool is_small(const Descent<T>& q) {
  return q.product && q.m <= kSmallRows && q.n <= kSmallColumns && q.p <= kSmallColumns;
}

template <typename T>
int64_t small_of_size(const Descent<T>& q) {
  if (q.n <= 8) return q.p <= 8 ? small<T, 8, 8>(q) : small<T, 8, 16>(q);
  return q.p <= 8 ? small<T, 16, 8>(q) : small<T, 16, 16>(q);
}

}  // namespace MCF_ISA
}  // namespace mcf
