// Rows of X, each in its place, against panels of M's columns, vectors along the columns: for problems of so few rows
// that vectors along those would be mostly padding, and for small losses. See advance.h.
#pragma once

#include "advance_rules.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

// From row to row of such columns: whole panels, and where those are a multiple of 1 KB a cache line more, without
// which the rows of a block share a few sets of the first cache.
template <typename T>
constexpr int64_t row_stride(int64_t columns) {
  const int64_t line = 64 / sizeof(T), whole = padded<T>(columns);
  return whole % (16 * line) == 0 ? whole + line : whole;
}

// The padded copies that a run works on.
template <typename T>
struct RowState {
  int64_t rows, n_stride, p_stride;
  T *x, *y, *r, *v, *s, *g;  // g is the gradient, where the rule needs it whole

  RowState(int64_t rows, int64_t n, int64_t p, T* work)
      : rows(rows), n_stride(row_stride<T>(n)), p_stride(row_stride<T>(p)) {
    x = work, y = x + rows * n_stride, r = y + rows * p_stride, v = r + rows * p_stride, s = v + rows * n_stride;
    g = s + rows * n_stride;
  }
  static int64_t elements(int64_t rows, int64_t n, int64_t p, int64_t buffers) {
    return rows * ((1 + buffers) * row_stride<T>(n) + 2 * row_stride<T>(p));
  }
  int64_t residuals() const { return rows * p_stride; }  // elements of r, padding included
};

template <typename T>
int64_t panels_elements(int64_t n, int64_t p) {
  return n * padded<T>(p) + p * padded<T>(n);
}

// One of `parts` parts of both orientations, the second one scaled; without `gradient` of the first alone.
template <typename T>
void pack_panels(const T* M, int64_t n, int64_t p, T scale, T* packed, bool gradient, int64_t part, int64_t parts) {
  const Rows plain = part_of(panels<T>(p), parts, part), transposed = part_of(panels<T>(n), parts, part);
  pack(M, n, p, p, 1, T(1), packed, plain.begin, plain.end);
  if (gradient) pack(M, p, n, 1, p, scale, packed + n * padded<T>(p), transposed.begin, transposed.end);
}

template <typename T>
MCF_INLINE void copy_rows(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[i * to_stride + j] = from[i * from_stride + j];
}

template <typename T>
MCF_INLINE void load(const RowState<T>& s, const Descent<T>& q, Rows rows, int buffers) {
  for (int64_t i = 0; i < s.elements(s.rows, q.n, q.p, buffers); ++i) s.x[i] = T(0);
  copy_rows<T>(q.X + rows.begin * q.n, q.n, s.x, s.n_stride, s.rows, q.n);
  copy_rows<T>(q.Y + rows.begin * q.p, q.p, s.y, s.p_stride, s.rows, q.p);
  if (buffers > 0) copy_rows<T>(q.V + rows.begin * q.n, q.n, s.v, s.n_stride, s.rows, q.n);
  if (buffers > 1) copy_rows<T>(q.S + rows.begin * q.n, q.n, s.s, s.n_stride, s.rows, q.n);
}

template <typename T>
MCF_INLINE void store(const RowState<T>& s, const Descent<T>& q, Rows rows, int buffers) {
  copy_rows<T>(s.x, s.n_stride, q.X + rows.begin * q.n, q.n, s.rows, q.n);
  copy_rows<T>(s.v, s.n_stride, q.V + rows.begin * q.n, q.n, s.rows, q.n);
  if (buffers > 1) copy_rows<T>(s.s, s.n_stride, q.S + rows.begin * q.n, q.n, s.rows, q.n);
}

template <typename T>
MCF_INLINE void load_residual(const RowState<T>& s, const Descent<T>& q, Rows rows) {
  copy_rows<T>(q.R + rows.begin * q.p, q.p, s.r, s.p_stride, s.rows, q.p);
}

template <typename T>
MCF_INLINE void store_residual(const RowState<T>& s, const Descent<T>& q, Rows rows) {
  copy_rows<T>(s.r, s.p_stride, q.R + rows.begin * q.p, q.p, s.rows, q.p);
}

// Calls f(first row, integral constant of the rows) for blocks of nearly equal height: 8 rows are 4 + 4, not 6 + 2,
// whose second block would waste two thirds of its loads.
template <int NV, typename F>
MCF_INLINE void for_blocks(int64_t rows, const F& f) {
  const int64_t blocks = parts_of(rows, max_rows(NV));
  for (int64_t i = 0; i < blocks; ++i) {
    const Rows block = part_of(rows, blocks, i);
    with_rows<max_rows(NV)>(static_cast<int>(block.count()), [&](auto R) { f(block.begin, R); });
  }
}

// r = x M - y for one panel of columns. Panels are the outer loop: one is read into the first cache and serves every
// block of the slab.
template <typename T, int NV>
double residual_panel(const RowState<T>& s, int64_t n, const T* panel, int64_t column) {
  constexpr int lanes = Simd<T>::lanes;
  Sum<T> sum;
  for_blocks<NV>(s.rows, [&](int64_t row, auto R) {
    const T* y = s.y + row * s.p_stride + column;
    T* r = s.r + row * s.p_stride + column;
    Vec<T> acc[R.value][NV];
    for (int i = 0; i < R.value; ++i)
      for (int h = 0; h < NV; ++h) acc[i][h] = -at(y + i * s.p_stride + h * lanes);
    multiply_panel<T, R.value, NV>(s.x + row * s.n_stride, s.n_stride, 1, panel, n, acc);
    for (int i = 0; i < R.value; ++i)
      for (int h = 0; h < NV; ++h) at(r + i * s.p_stride + h * lanes) = acc[i][h];
    sum.add(squares<T>(acc));
  });
  return sum.total();
}

// v = momentum v + r Mt and x -= lr v, for one panel of columns.
template <typename T, int NV>
void update_panel(const RowState<T>& s, int64_t p, const T* panel, int64_t column, const HeavyBall<T>& rule) {
  constexpr int lanes = Simd<T>::lanes;
  for_blocks<NV>(s.rows, [&](int64_t row, auto R) {
    const int64_t corner = row * s.n_stride + column;
    Vec<T> acc[R.value][NV];
    for (int i = 0; i < R.value; ++i)
      for (int h = 0; h < NV; ++h) acc[i][h] = rule.start(s.v + corner + i * s.n_stride + h * lanes);
    multiply_panel<T, R.value, NV>(s.r + row * s.p_stride, s.p_stride, 1, panel, p, acc);
    for (int i = 0; i < R.value; ++i)
      for (int h = 0; h < NV; ++h) {
        const int64_t k = corner + i * s.n_stride + h * lanes;
        rule.finish(acc[i][h], s.x + k, s.v + k);
      }
  });
}

// out = A B for one panel of columns.
template <typename T, int NV>
void product_panel(const T* A, int64_t lda, int64_t rows, int64_t k, const T* panel, T* out, int64_t ldo) {
  constexpr int lanes = Simd<T>::lanes;
  for_blocks<NV>(rows, [&](int64_t row, auto R) {
    Vec<T> acc[R.value][NV] = {};
    multiply_panel<T, R.value, NV>(A + row * lda, lda, 1, panel, k, acc);
    for (int i = 0; i < R.value; ++i)
      for (int h = 0; h < NV; ++h) at(out + (row + i) * ldo + h * lanes) = acc[i][h];
  });
}

// A [rows, k] times B [k, columns], which is packed; the rows of out have room for whole panels.
template <typename T>
void product(const T* A, int64_t lda, int64_t rows, int64_t k, const T* packed, int64_t columns, T* out, int64_t ldo) {
  const int vectors = panel_vectors<T>(columns);
  for (int64_t c = 0; c < padded<T>(columns); c += vectors * Simd<T>::lanes)
    vectors == 1 ? product_panel<T, 1>(A, lda, rows, k, packed + c * k, out + c, ldo)
                 : product_panel<T, 2>(A, lda, rows, k, packed + c * k, out + c, ldo);
}

// The squares of `width` columns of r from `column` on, each one in float64, and without the padding: where X holds an
// infinity, the padding's zeros times that are NaN.
template <typename T>
double wide_total(const RowState<T>& s, int64_t column, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = column; j < column + width; ++j) {
      const double r = s.r[i * s.p_stride + j];
      sum += r * r;
    }
  return sum;
}

// r = x - y. The padding is left out of the sum: under Adam with eps 0 it is 0 / 0.
template <typename T>
double subtract(const RowState<T>& s, int64_t n) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Sum<T> sum;
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = 0; j < padded<T>(n); j += lanes) {
      Vec<T>& r = at(s.r + i * s.n_stride + j);
      r = at(s.x + i * s.n_stride + j) - at(s.y + i * s.n_stride + j);
      for (int64_t l = n > j ? n - j : 0; l < lanes; ++l) r[l] = T(0);
      sum.add_square(r);
    }
  return sum.total();
}

template <typename T>
double residual_slab(const RowState<T>& s, const Descent<T>& q, const T* packed) {
  if (!q.product) return subtract(s, q.n);
  const int vectors = panel_vectors<T>(q.p), width = vectors * Simd<T>::lanes;
  double total = 0;
  for (int64_t c = 0; c < padded<T>(q.p); c += width) {
    double sum = vectors == 1 ? residual_panel<T, 1>(s, q.n, packed + c * q.n, c)
                              : residual_panel<T, 2>(s, q.n, packed + c * q.n, c);
    if (!safe_total<T>(sum)) sum = wide_total(s, c, q.p - c < width ? q.p - c : width);
    total += sum;
  }
  return total;
}

template <typename T>
void update_slab(const RowState<T>& s, const Descent<T>& q, const T* packed, const HeavyBall<T>& rule) {
  if (!q.product) {
    for (int64_t k = 0; k < s.rows * s.n_stride; k += Simd<T>::lanes)
      rule.finish(rule.start(s.v + k) + q.scale * at(s.r + k), s.x + k, s.v + k);
    return;
  }
  const T* transposed = packed + q.n * padded<T>(q.p);
  const int vectors = panel_vectors<T>(q.n);
  for (int64_t c = 0; c < padded<T>(q.n); c += vectors * Simd<T>::lanes)
    vectors == 1 ? update_panel<T, 1>(s, q.p, transposed + c * q.p, c, rule)
                 : update_panel<T, 2>(s, q.p, transposed + c * q.p, c, rule);
}

template <typename T>
void update_slab(const RowState<T>& s, const Descent<T>& q, const T* packed, const Adam<T>& rule) {
  if (q.product) product(s.r, s.p_stride, s.rows, q.p, packed + q.n * padded<T>(q.p), q.n, s.g, s.n_stride);
  for (int64_t k = 0; k < s.rows * s.n_stride; k += Simd<T>::lanes)
    rule.update(q.product ? at(s.g + k) : q.scale * at(s.r + k), s.x + k, s.v + k, s.s + k);
}

}  // namespace MCF_ISA
}  // namespace mcf
