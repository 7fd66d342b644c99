// Direct solution of one problem at a time, larger than a lane holds, by blocked elimination in float64.
//
// P M = L U by row pivoting, a panel of columns at a time, so that (X P^T) (L U) = Y. Everything but the pivoting is
// minus_product: a block of rows minus a product, accumulated in registers. Float32 problems are solved in float64 too:
// X is then the solution rounded to float32, up to a condition number of 1e9 or so.
#pragma once

#include "direct.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

constexpr int64_t kPanel = 2 * Simd<double>::lanes;  // columns
constexpr int64_t kRowsOfX = 24;                     // solved together: a multiple of the rows of a register block

// A matrix of doubles. Rows are not a power of two apart, which would evict each other from the first cache.
struct Grid {
  double* first;
  int64_t pitch;
  MCF_INLINE_MEMBER Grid at(int64_t i, int64_t j) const { return {first + i * pitch + j, pitch}; }
  MCF_INLINE_MEMBER double& operator()(int64_t i, int64_t j) const { return first[i * pitch + j]; }
  MCF_INLINE_MEMBER Vec<double>& vector(int64_t i, int h) const {
    return mcf::MCF_ISA::at(first + i * pitch + h * Simd<double>::lanes);
  }
};

// C -= A B for a panel C [rows, kPanel], A [rows, k], B [k, kPanel].
inline void minus_product(const Grid& C, const Grid& A, const Grid& B, int64_t rows, int64_t k) {
  constexpr int most = max_rows(2);
  for (int64_t i = 0; i < rows; i += most)
    with_rows<most>(static_cast<int>(rows - i < most ? rows - i : most), [&](auto R) {
      Vec<double> sums[R.value][2];
      for (int r = 0; r < R.value; ++r)
        for (int h = 0; h < 2; ++h) sums[r][h] = C.vector(i + r, h);
      for (int64_t q = 0; q < k; ++q) {
        const Vec<double> b0 = B.vector(q, 0), b1 = B.vector(q, 1);
#pragma GCC unroll 12
        for (int r = 0; r < R.value; ++r) {
          const Vec<double> a = A(i + r, q) - Vec<double>{};
          sums[r][0] -= a * b0, sums[r][1] -= a * b1;
        }
      }
      for (int r = 0; r < R.value; ++r)
        for (int h = 0; h < 2; ++h) C.vector(i + r, h) = sums[r][h];
    });
}

struct RowMatrices {
  int64_t n, padded;
  Grid M, a;                  // [padded, padded]; a becomes L and U
  Grid L_inverse, U_inverse;  // minus the inverses of their diagonal blocks, [padded, kPanel]
  Grid T, x, r;               // [kRowsOfX, padded]; r [kRowsOfX, kPanel]
  int64_t* order;             // [padded]: the row of M at each place

  static constexpr int64_t pitch(int64_t padded) { return padded + 8; }
  static int64_t elements(int64_t n) {
    const int64_t padded = round_up(n, kPanel);
    return 2 * (padded + kRowsOfX) * pitch(padded) + (2 * padded + kRowsOfX) * kPanel + padded;
  }
  RowMatrices(double* memory, int64_t n) : n(n), padded(round_up(n, kPanel)) {
    const auto grid = [&](int64_t rows, int64_t pitch) {
      const Grid made = {memory, pitch};
      memory += rows * pitch;
      return made;
    };
    const int64_t wide = pitch(padded);
    M = grid(padded, wide), a = grid(padded, wide), T = grid(kRowsOfX, wide), x = grid(kRowsOfX, wide);
    L_inverse = grid(padded, kPanel), U_inverse = grid(padded, kPanel), r = grid(kRowsOfX, kPanel);
    order = reinterpret_cast<int64_t*>(memory);
  }
};

// Rows [0, rows) of `to` [rows, padded] from a matrix [rows, n]; zeros behind them.
template <typename T>
MCF_INLINE void load_rows(const T* from, int64_t rows, int64_t n, int64_t padded, const Grid& to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n; ++j) to(i, j) = static_cast<double>(from[i * n + j]);
    for (int64_t j = n; j < padded; ++j) to(i, j) = 0;
  }
}

// Swaps in the largest element of column k from row k on, and subtracts row k from those below it, in the panel that
// begins at column j.
inline void eliminate(const RowMatrices& s, int64_t k, int64_t j) {
  const Grid& a = s.a;
  int64_t pivot = k;
  for (int64_t i = k + 1; i < s.n; ++i)
    if (__builtin_fabs(a(i, k)) > __builtin_fabs(a(pivot, k))) pivot = i;
  if (pivot != k) {
    for (int64_t q = 0; q < s.padded; q += Simd<double>::lanes) {
      const Vec<double> row = at(&a(k, q));
      at(&a(k, q)) = at(&a(pivot, q)), at(&a(pivot, q)) = row;
    }
    const int64_t place = s.order[k];
    s.order[k] = s.order[pivot], s.order[pivot] = place;
  }
  alignas(64) double right[kPanel], here[kPanel];  // row k right of column k, and where column k is
  for (int64_t c = 0; c < kPanel; ++c) right[c] = j + c > k ? a(k, j + c) : 0.0, here[c] = j + c == k;
  const double inverse = 1 / a(k, k);
  const Grid panel = a.at(0, j);
  for (int64_t i = k + 1; i < s.padded; ++i) {
    const Vec<double> factor = a(i, k) * inverse - Vec<double>{};
    for (int h = 0; h < 2; ++h) {
      Vec<double>& v = panel.vector(i, h);
      v = at(here + h * Simd<double>::lanes) != 0 ? factor : v - factor * at(right + h * Simd<double>::lanes);
    }
  }
}

// Minus the inverses of the diagonal blocks of L and U that begin at j.
inline void invert_blocks(const RowMatrices& s, int64_t j) {
  const Grid U = s.a.at(j, j), L_inverse = s.L_inverse.at(j, 0), U_inverse = s.U_inverse.at(j, 0);
  for (int64_t i = 0; i < kPanel; ++i) {
    for (int64_t c = 0; c < kPanel; ++c) L_inverse(i, c) = U_inverse(i, c) = i == c ? -1.0 : 0.0;
    for (int64_t c = i; c < kPanel; ++c) {  // row i of the inverse of U, from left to right
      for (int64_t q = i; q < c; ++q) U_inverse(i, c) -= U_inverse(i, q) * U(q, c);
      U_inverse(i, c) /= U(c, c);
    }
    for (int64_t c = i - 1; c >= 0; --c)  // of L, from right to left
      for (int64_t q = c + 1; q <= i; ++q) L_inverse(i, c) -= L_inverse(i, q) * U(q, c);
  }
}

inline void factor_rows(const RowMatrices& s) {
  const Grid& a = s.a;
  for (int64_t k = 0; k < s.padded; ++k) s.order[k] = k;
  for (int64_t j = 0; j < s.padded; j += kPanel) {
    for (int64_t i = 0; i < j; i += kPanel) {  // rows of U
      minus_product(a.at(i, j), a.at(i, 0), a.at(0, j), kPanel, i);
      for (int64_t row = i + 1; row < i + kPanel; ++row)
        minus_product(a.at(row, j), a.at(row, i), a.at(i, j), 1, row - i);
    }
    minus_product(a.at(j, j), a.at(j, 0), a.at(0, j), s.padded - j, j);
    for (int64_t k = j; k < j + kPanel; ++k) eliminate(s, k, j);
    invert_blocks(s, j);
  }
}

// The panel of T [rows, padded] at column j becomes its product with a block of kPanel rows and columns, negated.
inline void times_block(const RowMatrices& s, const Grid& block, int64_t rows, int64_t j) {
  const Grid panel = s.T.at(0, j);
  for (int64_t i = 0; i < rows; ++i)
    for (int h = 0; h < 2; ++h) s.r.vector(i, h) = panel.vector(i, h), panel.vector(i, h) = Vec<double>{};
  minus_product(panel, s.r, block, rows, kPanel);
}

// T becomes T (L U)^-1. Before column `first` T is 0.
inline void substitute_rows(const RowMatrices& s, int64_t rows, int64_t first) {
  for (int64_t j = first; j < s.padded; j += kPanel) {
    minus_product(s.T.at(0, j), s.T.at(0, first), s.a.at(first, j), rows, j - first);
    times_block(s, s.U_inverse.at(j, 0), rows, j);
  }
  for (int64_t j = s.padded - kPanel; j >= 0; j -= kPanel) {
    const int64_t after = j + kPanel;
    minus_product(s.T.at(0, j), s.T.at(0, after), s.a.at(after, j), rows, s.padded - after);
    times_block(s, s.L_inverse.at(j, 0), rows, j);
  }
}

// Sets x to the solution as its type represents it, writes it to X, and returns the squares of its residual.
template <typename T>
double finish_rows(const RowMatrices& s, int64_t rows, const T* Y, int64_t first, T* X) {
  const int64_t n = s.n;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n; ++j) X[i * n + s.order[j]] = static_cast<T>(s.T(i, j));
  }
  load_rows(X, rows, n, s.padded, s.x);
  Sum<double> sum;
  for (int64_t j = 0; j < s.padded; j += kPanel) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < kPanel; ++c)
        s.r(i, c) = j + c >= n ? 0.0 : Y ? static_cast<double>(Y[i * n + j + c]) : first + i == j + c;
    minus_product(s.r, s.x, s.M.at(0, j), rows, n);
    for (int64_t i = 0; i < rows; ++i)
      for (int h = 0; h < 2; ++h) sum.add_square(s.r.vector(i, h));
  }
  return sum.total();
}

inline int64_t direct_rows_elements(int64_t n) { return RowMatrices::elements(n); }

template <typename T>
int64_t direct_rows(const DirectBatch<T>& batch, Queue& queue, double* work) {
  const int64_t n = batch.n, m = batch.m;
  const RowMatrices s(work, n);
  int64_t open = 0;
  for (int64_t b; (b = queue.next()) < batch.size;) {
    load_rows(batch.M + b * batch.M_stride, n, n, s.padded, s.M);
    load_rows(batch.M + b * batch.M_stride, n, n, s.padded, s.a);
    for (int64_t i = n; i < s.padded; ++i)
      for (int64_t j = 0; j < s.padded; ++j) s.a(i, j) = i == j;
    factor_rows(s);
    double Y_squares = batch.Y ? 0.0 : static_cast<double>(n), R_squares = 0;
    for (int64_t i = 0; i < m; i += kRowsOfX) {
      const int64_t rows = m - i < kRowsOfX ? m - i : kRowsOfX;
      const T* const Y = batch.Y ? batch.Y + b * batch.Y_stride + i * n : nullptr;
      if (Y) {
        load_rows(Y, rows, n, s.padded, s.T);
        for (int64_t k = 0; k < rows * n; ++k) Y_squares += static_cast<double>(Y[k]) * static_cast<double>(Y[k]);
      } else {
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t j = 0; j < s.padded; ++j) s.T(r, j) = i + r == j;
      }
      substitute_rows(s, rows, Y ? 0 : i / kPanel * kPanel);
      R_squares += finish_rows(s, rows, Y, i, batch.X + b * m * n + i * n);
    }
    open += batch.judge(b, Y_squares, R_squares);
  }
  return open;
}

}  // namespace MCF_ISA
}  // namespace mcf
