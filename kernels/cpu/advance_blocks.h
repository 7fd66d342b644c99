// Blocks of rows of X, vectors along the rows, against groups of M's columns. See advance.h.
//
// A block is two vectors of rows; its state is stored column by column. So what a product reads of a block lies in one
// piece, and so does what it writes. Against rows in their places, whose every operand is six streams of a row each, an
// iteration takes 0.94 of the time at 64 square, 0.92 at 128, 0.96 at 256, 0.97 at 512 and 0.84 at 1,024 (two Zen 3
// cores, both in turns).
#pragma once

#include "advance_rules.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

// Columns of the largest group: 6 x 2 accumulators of AVX2's 16 registers, 12 x 2 of AVX-512's 32.
constexpr int kGroup = MCF_VECTOR_BYTES == 64 ? 12 : 6;

constexpr int64_t groups_of(int64_t columns) { return parts_of(columns, kGroup); }

// The state of some rows. The last block has one vector, where one will do; its rows are padded with zeros.
template <typename T>
struct BlockState {
  static constexpr int64_t lanes = Simd<T>::lanes;
  int64_t rows, n, p, vectors;
  T *x, *y, *r, *v, *s, *g;  // g is the gradient, where the rule needs it whole

  BlockState(int64_t rows, int64_t n, int64_t p, T* work) : rows(rows), n(n), p(p), vectors(vectors_of(rows)) {
    const int64_t padded = vectors * lanes;
    x = work, y = x + padded * n, r = y + padded * p, v = r + padded * p, s = v + padded * n, g = s + padded * n;
  }
  static int64_t vectors_of(int64_t rows) { return parts_of(rows, lanes); }
  static int64_t elements(int64_t rows, int64_t n, int64_t p, int64_t buffers) {
    return vectors_of(rows) * lanes * ((1 + buffers) * n + 2 * p);
  }
  int64_t residuals() const { return vectors * lanes * p; }  // elements of r, padding included
};

// Calls f(element, entry, count, width) for pieces of a row: `count` entries of the matrix of so many columns, from
// `entry` on, are elements of the state's, from `element` on, `width` apart. A piece is a cache line, so that the lines
// of the columns that one row touches are still there for the next.
template <typename T, typename F>
MCF_INLINE void for_pieces(const BlockState<T>& s, int64_t columns, const F& f) {
  constexpr int64_t block = 2 * Simd<T>::lanes, line = 64 / sizeof(T);
  for (int64_t begin = 0; begin < s.rows; begin += block) {
    const int64_t left = s.vectors * s.lanes - begin, width = left < block ? left : block;
    const int64_t rows = s.rows - begin < width ? s.rows - begin : width;
    for (int64_t k = 0; k < columns; k += line)
      for (int64_t i = 0; i < rows; ++i)
        f(begin * columns + k * width + i, (begin + i) * columns + k, columns - k < line ? columns - k : line, width);
  }
}

// Rows of a matrix with so many columns, to their blocks and back.
template <typename T>
void to_blocks(const BlockState<T>& s, const T* from, int64_t columns, T* to) {
  if (s.rows < s.vectors * s.lanes)
    for (int64_t k = s.rows / (2 * s.lanes) * 2 * s.lanes * columns; k < s.vectors * s.lanes * columns; ++k) to[k] = 0;
  for_pieces(s, columns, [&](int64_t element, int64_t entry, int64_t count, int64_t width) {
    for (int64_t k = 0; k < count; ++k) to[element + k * width] = from[entry + k];
  });
}

template <typename T>
void from_blocks(const BlockState<T>& s, const T* from, int64_t columns, T* to) {
  for_pieces(s, columns, [&](int64_t element, int64_t entry, int64_t count, int64_t width) {
    for (int64_t k = 0; k < count; ++k) to[entry + k] = from[element + k * width];
  });
}

template <typename T>
void load(const BlockState<T>& s, const Descent<T>& q, Rows rows, int buffers) {
  to_blocks(s, q.X + rows.begin * q.n, q.n, s.x);
  to_blocks(s, q.Y + rows.begin * q.p, q.p, s.y);
  to_blocks(s, q.V + rows.begin * q.n, q.n, s.v);
  if (buffers > 1) to_blocks(s, q.S + rows.begin * q.n, q.n, s.s);
}

template <typename T>
void store(const BlockState<T>& s, const Descent<T>& q, Rows rows, int buffers) {
  from_blocks(s, s.x, q.n, q.X + rows.begin * q.n);
  from_blocks(s, s.v, q.n, q.V + rows.begin * q.n);
  if (buffers > 1) from_blocks(s, s.s, q.n, q.S + rows.begin * q.n);
}

template <typename T>
void load_residual(const BlockState<T>& s, const Descent<T>& q, Rows rows) {
  to_blocks(s, q.R + rows.begin * q.p, q.p, s.r);
}

template <typename T>
void store_residual(const BlockState<T>& s, const Descent<T>& q, Rows rows) {
  from_blocks(s, s.r, q.p, q.R + rows.begin * q.p);
}

// One of `parts` parts of M [n, p] in groups of columns, [n, columns of the group] each, and of M^T, scaled, likewise;
// without `gradient` of the first alone.
template <typename T>
void pack_groups(const T* M, int64_t n, int64_t p, T scale, T* packed, bool gradient, int64_t part, int64_t parts) {
  const Rows plain = part_of(groups_of(p), parts, part), transposed = part_of(groups_of(n), parts, part);
  for (int64_t g = plain.begin; g < plain.end; ++g) {
    const Rows group = part_of(p, groups_of(p), g);
    T* out = packed + group.begin * n;
    for (int64_t k = 0; k < n; ++k)
      for (int64_t j = group.begin; j < group.end; ++j) *out++ = M[k * p + j];
  }
  for (int64_t g = transposed.begin; gradient && g < transposed.end; ++g) {
    const Rows group = part_of(n, groups_of(n), g);
    T* out = packed + n * p + group.begin * p;
    for (int64_t k = 0; k < p; ++k)
      for (int64_t i = group.begin; i < group.end; ++i) *out++ = scale * M[i * p + k];
  }
}

// Calls f(block's first vector, its vectors, group's first column, its columns), the counts as integral constants. One
// group stays in the first cache for all blocks.
template <typename T, typename F>
MCF_INLINE void for_groups(const BlockState<T>& s, int64_t columns, const F& f) {
  for (int64_t g = 0; g < groups_of(columns); ++g) {
    const Rows group = part_of(columns, groups_of(columns), g);
    with_rows<kGroup>(static_cast<int>(group.count()), [&](auto C) {
      int64_t vector = 0;
      for (; vector + 1 < s.vectors; vector += 2) f(vector, RowCount<2>{}, group.begin, C);
      if (vector < s.vectors) f(vector, RowCount<1>{}, group.begin, C);
    });
  }
}

// Without the padding, each square in float64.
template <typename T>
double wide_total(const BlockState<T>& s) {
  double sum = 0;
  for_pieces(s, s.p, [&](int64_t element, int64_t, int64_t count, int64_t width) {
    for (int64_t k = 0; k < count; ++k) {
      const double r = s.r[element + k * width];
      sum += r * r;
    }
  });
  return sum;
}

// A state's matrix of k columns times packed groups of so many columns: start(element) gives the accumulator that the
// product begins with, finish(element, accumulator) takes it, and tile(accumulators) sees those of a tile. The k terms
// in parts that would stay in the first cache cost 2 to 15 % at 512 and 1,024.
template <typename T, typename Start, typename Finish, typename Tile>
MCF_INLINE void multiply_blocks(const BlockState<T>& s, const T* matrix, int64_t k, const T* packed, int64_t columns,
                                const Start& start, const Finish& finish, const Tile& tile) {
  constexpr int lanes = Simd<T>::lanes;
  for_groups(s, columns, [&](int64_t vector, auto NV, int64_t column, auto C) {
    const int64_t corner = (vector * columns + column * NV.value) * lanes;
    Vec<T> acc[C.value][NV.value];
    for (int c = 0; c < C.value; ++c)
      for (int h = 0; h < NV.value; ++h) acc[c][h] = start(corner + (c * NV.value + h) * lanes);
    // a group's columns are the rows of the micro-kernel, and a block is its panel
    multiply_panel<T, C.value, NV.value>(packed + column * k, 1, C.value, matrix + vector * k * lanes, k, acc);
    for (int c = 0; c < C.value; ++c)
      for (int h = 0; h < NV.value; ++h) finish(corner + (c * NV.value + h) * lanes, acc[c][h]);
    tile(acc);
  });
}

// r = x M - y; the sum of squares.
template <typename T>
double residual_slab(const BlockState<T>& s, const Descent<T>& q, const T* packed) {
  Sum<T> sum;
  multiply_blocks(
      s, s.x, q.n, packed, q.p, [&](int64_t i) { return -at(s.y + i); },
      [&](int64_t i, const Vec<T>& acc) { at(s.r + i) = acc; }, [&](auto& acc) { sum.add(squares<T>(acc)); });
  const double total = sum.total();
  return safe_total<T>(total) ? total : wide_total(s);
}

template <typename T>
void update_slab(const BlockState<T>& s, const Descent<T>& q, const T* packed, const HeavyBall<T>& rule) {
  multiply_blocks(
      s, s.r, q.p, packed + q.n * q.p, q.n, [&](int64_t i) { return rule.start(s.v + i); },
      [&](int64_t i, const Vec<T>& acc) { rule.finish(acc, s.x + i, s.v + i); }, [](auto&) {});
}

template <typename T>
void update_slab(const BlockState<T>& s, const Descent<T>& q, const T* packed, const Adam<T>& rule) {
  multiply_blocks(
      s, s.r, q.p, packed + q.n * q.p, q.n, [](int64_t) { return Vec<T>{}; },
      [&](int64_t i, const Vec<T>& acc) { at(s.g + i) = acc; }, [](auto&) {});
  for (int64_t k = 0; k < s.vectors * s.lanes * q.n; k += s.lanes) rule.update(at(s.g + k), s.x + k, s.v + k, s.s + k);
}

}  // namespace MCF_ISA
}  // namespace mcf
