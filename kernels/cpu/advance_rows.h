// Algorithm `rows`: row-major rows of X times panels of M's columns, vectors along the columns. For problems of so few
// rows that vectors along the rows would be mostly padding, for M=None, for single steps, and for small losses.
#pragma once

#include "microkernel.h"
#include "rules.h"

namespace mcf {
namespace MCF_ISA {

// Elements from one row to the next: whole panels, plus a cache line where those are a multiple of 1 KB. Without it the
// rows of a block share a few sets of the first cache.
template <typename T>
constexpr int64_t row_stride(int64_t columns) {
  const int64_t line = 64 / sizeof(T), whole = padded<T>(columns);
  return whole % (16 * line) == 0 ? whole + line : whole;
}

template <typename T>
int64_t panels_elements(int64_t n, int64_t p) {
  return n * padded<T>(p) + p * padded<T>(n);
}

// One of `parts` parts of both orientations, the second one scaled; without `gradient` of the first only.
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

// The padded copies of some rows that a run works on. The rule's states follow X, `pitch` vectors apart.
template <typename T>
struct RowState {
  typedef T Element;
  int64_t rows, n_stride, p_stride, pitch;
  int states;
  T *x, *y, *r;

  RowState(int64_t rows, int64_t n, int64_t p, int states, T* work)
      : rows(rows),
        n_stride(row_stride<T>(n)),
        p_stride(row_stride<T>(p)),
        pitch(rows * n_stride / Simd<T>::lanes),
        states(states),
        x(work),
        y(x + (1 + states) * rows * n_stride),
        r(y + rows * p_stride) {}
  static int64_t elements(int64_t rows, int64_t n, int64_t p, int states) {
    return rows * ((1 + states) * row_stride<T>(n) + 2 * row_stride<T>(p));
  }
  static int64_t least_rows(const Shape&) { return 1; }
  static int64_t packed_elements(const Shape& f) { return panels_elements<T>(f.n, f.p); }
  static void pack(const T* M, const Shape& f, T scale, T* packed, bool gradient, int64_t part, int64_t parts) {
    pack_panels(M, f.n, f.p, scale, packed, gradient, part, parts);
  }

  int64_t residuals() const { return rows * p_stride; }  // elements of r, padding included
  T* state(int k) const { return x + (k + 1) * rows * n_stride; }

  MCF_INLINE_MEMBER void load(const Descent<T>& q, Rows part) const {
    for (int64_t i = 0; i < elements(rows, q.n, q.p, states); ++i) x[i] = T(0);
    copy_rows<T>(q.X + part.begin * q.n, q.n, x, n_stride, rows, q.n);
    copy_rows<T>(q.Y + part.begin * q.p, q.p, y, p_stride, rows, q.p);
    for (int k = 0; k < states; ++k) copy_rows<T>(q.state[k] + part.begin * q.n, q.n, state(k), n_stride, rows, q.n);
  }
  MCF_INLINE_MEMBER void store(const Descent<T>& q, Rows part) const {
    copy_rows<T>(x, n_stride, q.X + part.begin * q.n, q.n, rows, q.n);
    for (int k = 0; k < states; ++k) copy_rows<T>(state(k), n_stride, q.state[k] + part.begin * q.n, q.n, rows, q.n);
  }
  MCF_INLINE_MEMBER void load_residual(const Descent<T>& q, Rows part) const {
    copy_rows<T>(q.R + part.begin * q.p, q.p, r, p_stride, rows, q.p);
  }
  MCF_INLINE_MEMBER void store_residual(const Descent<T>& q, Rows part) const {
    copy_rows<T>(r, p_stride, q.R + part.begin * q.p, q.p, rows, q.p);
  }
};

// Calls f(first row, integral constant of the rows) for blocks of nearly equal height. 8 rows become 4 + 4: of 6 + 2
// the second block would waste two thirds of its loads.
template <int NV, typename F>
MCF_INLINE void for_blocks(int64_t rows, const F& f) {
  const int64_t blocks = parts_of(rows, max_rows(NV));
  for (int64_t i = 0; i < blocks; ++i) {
    const Rows block = part_of(rows, blocks, i);
    with_rows<max_rows(NV)>(static_cast<int>(block.count()), [&](auto R) { f(block.begin, R); });
  }
}

// r = x M - y for one panel of columns. Panels are the outer loop: one panel stays in the first cache for all blocks.
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

// The rule's update with r M^T, for one panel of columns.
template <typename T, int NV, class Rule>
void update_panel(const RowState<T>& s, int64_t p, const T* panel, int64_t column, const Rule& rule) {
  constexpr int lanes = Simd<T>::lanes;
  for_blocks<NV>(s.rows, [&](int64_t row, auto R) {
    T* corner = s.x + row * s.n_stride + column;
    const int64_t to_state = s.pitch * lanes;
    Vec<T> acc[R.value][NV];
    for (int i = 0; i < R.value; ++i)
      for (int h = 0; h < NV; ++h) acc[i][h] = start(rule, at(corner + to_state + i * s.n_stride + h * lanes));
    multiply_panel<T, R.value, NV>(s.r + row * s.p_stride, s.p_stride, 1, panel, p, acc);
    for (int i = 0; i < R.value; ++i)
      for (int h = 0; h < NV; ++h) finish_at(rule, acc[i][h], &at(corner + i * s.n_stride + h * lanes), s.pitch);
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

// A [rows, k] times B [k, columns], which is packed; the rows of out hold whole panels.
template <typename T>
void product(const T* A, int64_t lda, int64_t rows, int64_t k, const T* packed, int64_t columns, T* out, int64_t ldo) {
  const int vectors = panel_vectors<T>(columns);
  for (int64_t c = 0; c < padded<T>(columns); c += vectors * Simd<T>::lanes)
    vectors == 1 ? product_panel<T, 1>(A, lda, rows, k, packed + c * k, out + c, ldo)
                 : product_panel<T, 2>(A, lda, rows, k, packed + c * k, out + c, ldo);
}

// The sum of squares of `width` columns of r from `column` on, each square in float64. The padding is left out: its
// zeros times an infinity in X are NaN.
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

// r = x - y. The padding is left out of the sum: a rule need not keep it 0.
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

template <typename T, class Rule>
void update_slab(const RowState<T>& s, const Descent<T>& q, const T* packed, const Rule& rule) {
  if (!q.product) {
    for (int64_t k = 0; k < s.rows * s.n_stride; k += Simd<T>::lanes)
      finish_at(rule, start(rule, at(s.state(0) + k)) + q.scale * at(s.r + k), &at(s.x + k), s.pitch);
    return;
  }
  const T* transposed = packed + q.n * padded<T>(q.p);
  const int vectors = panel_vectors<T>(q.n);
  for (int64_t c = 0; c < padded<T>(q.n); c += vectors * Simd<T>::lanes)
    vectors == 1 ? update_panel<T, 1>(s, q.p, transposed + c * q.p, c, rule)
                 : update_panel<T, 2>(s, q.p, transposed + c * q.p, c, rule);
}

}  // namespace MCF_ISA
}  // namespace mcf
