// Direct solution of many small problems: each lane of a vector holds a problem of its own.
//
// M P^T = L U by column pivoting, so that X (L U) = Y P^T. The diagonal of U [n, n] is 1. P differs from lane to lane:
// columns are swapped by selecting lanes. The residual of the X found, as T represents it, is made in float64.
//
// Float32 problems are eliminated in float32, eight or sixteen to a vector. Those that miss their tolerance, one in 300
// random 4 x 4, are eliminated again in float64, after which X is as good as float32 allows up to a condition number of
// 1e9 or so.
#pragma once

#include "direct.h"
#include "simd.h"
#include "transpose_lanes.h"

namespace mcf {
namespace MCF_ISA {

typedef Vec<double> Wide;

// Calls f(k) for k in [0, n): unrolled where n is N, so that the matrices of a small problem stay in registers.
template <int N, int K = 0, typename F>
MCF_INLINE void for_each(int64_t n, const F& f) {
  if constexpr (N == 0) {
    for (int64_t k = 0; k < n; ++k) f(k);
  } else if constexpr (K < N) {
    f(K);
    for_each<N, K + 1>(n, f);
  }
}
#define MCF_STEP(k) [&](int64_t k) __attribute__((always_inline))

template <int p>
struct Part {
  static constexpr int value = p;
};

// Calls f(integral constant) for each double vector that a vector of E takes.
template <typename E, typename F>
MCF_INLINE void for_parts(const F& f) {
  f(Part<0>{});
  if constexpr (sizeof(E) == 4) f(Part<1>{});
}

// The matrices of one vector of problems.
template <typename E>
struct LaneMatrices {
  static constexpr int lanes = Simd<E>::lanes, parts = 8 / sizeof(E);
  Vec<E>*a, *x;                               // [n, n], and [n, 4]: four rows of X, column by column
  Wide *M[parts], *wide_x[parts], *y[parts];  // [n, n], [n, 4], [4, n]
  Vec<E>* order;                              // [n]: the column of M at each place
  Wide Y_squares[parts], R_squares[parts];

  static constexpr int64_t vectors(int64_t n) { return n * n + 4 * n + parts * (n * n + 8 * n); }
  MCF_INLINE_MEMBER LaneMatrices(Vec<E>* memory, int64_t n, Vec<E>* order) : order(order) {
    a = memory, x = a + n * n;
    Wide* next = reinterpret_cast<Wide*>(x + 4 * n);
    for (int p = 0; p < parts; ++p, next += n * n + 8 * n)
      M[p] = next, wide_x[p] = next + n * n, y[p] = wide_x[p] + 4 * n;
  }
};

// a, a copy of M, becomes L with its inverted diagonal, and U above it.
template <int N, typename E>
MCF_INLINE void factor_lanes(const LaneMatrices<E>& s, int64_t n) {
  typedef Vec<E> V;
  for (int64_t j = 0; j < n; ++j) s.order[j] = V{} + static_cast<E>(j);
  decltype(V{} == V{}) swapped[N ? N : kMostInLanes];  // lanes whose pivot is in column j
  for_each<N>(
      n, MCF_STEP(k) {
        V* const row = s.a + k * n;
        V largest = row[k] < 0 ? -row[k] : row[k];
        const V here = V{} + static_cast<E>(k);
        V pivot = here;
        for (int64_t j = k + 1; j < n; ++j) {
          const V size = row[j] < 0 ? -row[j] : row[j];
          const auto larger = size > largest;
          largest = larger ? size : largest, pivot = larger ? V{} + static_cast<E>(j) : pivot;
        }
        if (any_lane(pivot != here)) {
          for (int64_t j = k + 1; j < n; ++j) swapped[j] = pivot == V{} + static_cast<E>(j);
          const auto swap = [&](V* v) __attribute__((always_inline)) {
            const V before = v[k];
            V chosen = before;
            for (int64_t j = k + 1; j < n; ++j) {
              chosen = swapped[j] ? v[j] : chosen;
              v[j] = swapped[j] ? before : v[j];
            }
            v[k] = chosen;
          };
          swap(s.order);
          for (int64_t q = 0; q < n; ++q) swap(s.a + q * n);
        }
        row[k] = 1 / row[k];
        for (int64_t j = k + 1; j < n; ++j) row[j] *= row[k];
        for (int64_t q = k + 1; q < n; ++q) {
          V* const v = s.a + q * n;
          for (int64_t j = k + 1; j < n; ++j) v[j] -= v[k] * row[j];
        }
      });
}

// Rows x [n, R], column by column, become x (L U)^-1. Before column `first` x is 0.
template <int N, int R, typename V>
MCF_INLINE void substitute_lanes(const V* a, int64_t n, int64_t first, V* x) {
  for_each<N>(
      n, MCF_STEP(j) {
        if (j <= first) return;
        V sums[R];
        for (int r = 0; r < R; ++r) sums[r] = x[j * R + r];
        for (int64_t q = first; q < j; ++q)
          for (int r = 0; r < R; ++r) sums[r] -= x[q * R + r] * a[q * n + j];
        for (int r = 0; r < R; ++r) x[j * R + r] = sums[r];
      });
  for_each<N>(
      n, MCF_STEP(k) {
        const int64_t j = n - 1 - k;
        V sums[R];
        for (int r = 0; r < R; ++r) sums[r] = x[j * R + r];
        for (int64_t q = j + 1; q < n; ++q)
          for (int r = 0; r < R; ++r) sums[r] -= x[q * R + r] * a[q * n + j];
        for (int r = 0; r < R; ++r) x[j * R + r] = sums[r] * a[j * n + j];
      });
}

// The squares of the columns [j, j + C) of x M - y.
template <int R, int C, typename F>
MCF_INLINE Wide residual_lanes(const Wide* M, const Wide* x, int64_t n, int64_t j, const F& minus_y) {
  Wide sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = minus_y(r, j + c);
  for (int64_t q = 0; q < n; ++q)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c] += x[q * R + r] * M[q * n + j + c];
  return squares<double>(sums);
}

template <typename E, typename T>
struct Lane {  // the problem of each lane
  const T *M[Simd<E>::lanes], *Y[Simd<E>::lanes];
  T* X[Simd<E>::lanes];
};

// Rows [i, i + R) of X.
template <int N, int R, typename E, typename T>
MCF_INLINE void rows_of_lanes(LaneMatrices<E>& s, const Lane<E, T>& lane, int64_t n, int64_t i, bool identity) {
  constexpr int lanes = Simd<E>::lanes;
  Vec<E>* const x = s.x;
  if (identity) {  // of P^T, whose row order[i] of X is row i here
    for (int64_t k = 0; k < R * n; ++k) x[k] = Vec<E>{};
    for (int r = 0; r < R; ++r) x[(i + r) * R + r] += 1;
    substitute_lanes<N, R>(s.a, n, i, x);
  } else {
    const T* from[lanes];
    for (int l = 0; l < lanes; ++l) from[l] = lane.Y[l] + i * n;
    gather<E>(from, R * n, [&](int64_t k, const Vec<E>& v) __attribute__((always_inline)) {
      for_parts<E>([&](auto p) __attribute__((always_inline)) {
        const Wide wide = s.y[p.value][k] = widened<p.value>(v);
        s.Y_squares[p.value] += wide * wide;
      });
    });
    for (int r = 0; r < R; ++r)
      for (int64_t j = 0; j < n; ++j)
        for (int l = 0; l < lanes; ++l)
          x[j * R + r][l] = static_cast<E>(from[l][r * n + static_cast<int64_t>(s.order[j][l])]);
    substitute_lanes<N, R>(s.a, n, 0, x);
  }
  for_parts<E>([&](auto p) __attribute__((always_inline)) {
    Wide* const wide = s.wide_x[p.value];
    for (int64_t k = 0; k < R * n; ++k) wide[k] = widened<p.value>(rounded<T>(x[k]));
    Wide place[R];
    for (int r = 0; r < R; ++r) place[r] = widened<p.value>(s.order[i + r]);
    const auto minus_y = [&](int64_t r, int64_t j) __attribute__((always_inline)) -> Wide {
      if (!identity) return -s.y[p.value][r * n + j];
      return place[r] == Wide{} + static_cast<double>(j) ? Wide{} - 1 : Wide{};
    };
    int64_t j = 0;
    for (; j + 2 <= n; j += 2) s.R_squares[p.value] += residual_lanes<R, 2>(s.M[p.value], wide, n, j, minus_y);
    if (j < n) s.R_squares[p.value] += residual_lanes<R, 1>(s.M[p.value], wide, n, j, minus_y);
  });
  for (int r = 0; r < R; ++r) {
    int row[lanes];
    const auto rows = __builtin_convertvector(s.order[i + r], typename Vector<int, lanes>::Type);
    __builtin_memcpy(row, &rows, sizeof(row));
    T* to[lanes];
    for (int l = 0; l < lanes; ++l) to[l] = lane.X[l] + (identity ? row[l] : i + r) * n;
    scatter<E>(x + r, R, n, to);
  }
}

// The problems index(0), index(1), ... of as many lanes, of `count`; the last lanes repeat the last one. Calls
// f(first, matrices) for the problems index(first), ... With N the inverses of matrices [N, N]; 0 for all other
// problems.
template <typename E, int N, typename T, typename I, typename F>
MCF_INLINE void solve_lanes(const DirectBatch<T>& batch, int64_t count, double* work, const I& index, const F& f) {
  typedef LaneMatrices<E> Matrices;
  constexpr int lanes = Simd<E>::lanes;
  const int64_t n = N ? N : batch.n, m = N ? N : batch.m, M_stride = batch.M_stride;
  const bool identity = N || !batch.Y;
  Vec<E> memory[N ? Matrices::vectors(N) : 1], order[N ? N : kMostInLanes];
  Matrices s(N ? memory : reinterpret_cast<Vec<E>*>(work), n, order);
  for (int64_t first = 0; first < count; first += lanes) {
    Lane<E, T> lane;
    for (int l = 0; l < lanes; ++l) {
      const int64_t b = index(first + l < count ? first + l : count - 1);
      lane.M[l] = batch.M + b * M_stride, lane.X[l] = batch.X + b * m * n;
      lane.Y[l] = identity ? nullptr : batch.Y + b * batch.Y_stride;
    }
    gather<E>(lane.M, n * n, [&](int64_t k, const Vec<E>& v) __attribute__((always_inline)) {
      s.a[k] = v;
      for_parts<E>([&](auto p) __attribute__((always_inline)) { s.M[p.value][k] = widened<p.value>(v); });
    });
    factor_lanes<N>(s, n);
    for_parts<E>([&](auto p) __attribute__((always_inline)) {
      s.Y_squares[p.value] = Wide{} + (identity ? static_cast<double>(n) : 0.0), s.R_squares[p.value] = Wide{};
    });
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) rows_of_lanes<N, 4>(s, lane, n, i, identity);
    if constexpr (N == 0)
      for (; i < m; ++i) rows_of_lanes<N, 1>(s, lane, n, i, identity);
    f(first, s);
  }
}

// Calls f(k, ||Y||^2, ||R||^2) for the problems in lanes, k = 0, 1, ... below `count`.
template <typename E, typename F>
MCF_INLINE void for_problems(const LaneMatrices<E>& s, int64_t count, const F& f) {
  constexpr int width = Simd<double>::lanes;
  double Y_squares[Simd<E>::lanes], R_squares[Simd<E>::lanes];
  __builtin_memcpy(Y_squares, s.Y_squares, sizeof(Y_squares));
  __builtin_memcpy(R_squares, s.R_squares, sizeof(R_squares));
  for (int k = 0; k < s.parts * width && k < count; ++k) f(k, Y_squares[k], R_squares[k]);
}

// By elimination in float64, what elimination in float32 has missed.
template <typename T>
int64_t solve_again(const DirectBatch<T>& batch, const int64_t* missed, int64_t count, double* work) {
  int64_t open = 0;
  solve_lanes<double, 0>(
      batch, count, work, [&](int64_t k) { return missed[k]; },
      [&](int64_t first, const LaneMatrices<double>& s) {
        for_problems(s, count - first, [&](int k, double Y_squares, double R_squares) {
          open += batch.judge(missed[first + k], Y_squares, R_squares);
        });
      });
  return open;
}

template <int N, typename T>
int64_t solve_groups(const DirectBatch<T>& batch, Queue& queue, double* work) {
  const DirectCriteria criteria = batch.criteria;  // unlike the batch, no output may alias it
  const double threshold = N ? criteria.threshold(N) : 0;
  const T loss = N ? static_cast<T>(criteria.loss_of(N)) : T(0);
  int64_t open = 0, missed[kDirectGroup], misses;
  for (int64_t begin; (begin = queue.next() * kDirectGroup) < batch.size;) {
    const int64_t count = batch.size - begin < kDirectGroup ? batch.size - begin : kDirectGroup;
    misses = 0;
    solve_lanes<T, N>(
        batch, count, work, [&](int64_t k) { return begin + k; },
        [&](int64_t first, const LaneMatrices<T>& s) __attribute__((always_inline)) {
          for_problems(s, count - first, [&](int k, double Y_squares, double R_squares) __attribute__((always_inline)) {
            const int64_t b = begin + first + k;
            if (sizeof(T) == 8) {
              open += batch.judge(b, Y_squares, R_squares);
              return;
            }
            const bool converged = R_squares <= (N ? threshold : criteria.threshold(Y_squares));
            const T of_Y = N ? loss : static_cast<T>(criteria.loss_of(Y_squares));
            batch.record(b, of_Y, R_squares, converged ? kStatusConverged : kStatusRunning);
            missed[misses] = b, misses += !converged;
          });
        });
    if (misses) open += solve_again(batch, missed, misses, work);
  }
  return open;
}

template <typename T>
int64_t direct_lanes_elements(int64_t n) {
  return (LaneMatrices<T>::vectors(n) + LaneMatrices<double>::vectors(n)) * Simd<double>::lanes;
}

template <typename T>
int64_t direct_lanes(const DirectBatch<T>& batch, Queue& queue, double* work) {
  const int64_t unrolled = batch.Y ? 0 : batch.n;
  if (unrolled == 4) return solve_groups<4>(batch, queue, work);
  if (sizeof(T) == 4 && unrolled == 8) return solve_groups<8>(batch, queue, work);
  return solve_groups<0>(batch, queue, work);
}

}  // namespace MCF_ISA
}  // namespace mcf
