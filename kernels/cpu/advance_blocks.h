// Algorithm `blocks`: blocks of rows of X, vectors along the rows, times groups of M's columns.
//
// A block is two vectors of rows, stored column by column, so that whatever a product reads or writes of a block is
// contiguous. Algorithm `rows` reads each operand as six streams, one a row. Against it an iteration takes 0.94 of the
// time at 64 square, 0.92 at 128, 0.96 at 256, 0.97 at 512 and 0.84 at 1,024 (two Zen 3 cores, measured in turns).
#pragma once

#include "microkernel.h"
#include "rules.h"

namespace mcf {
namespace MCF_ISA {

// Columns of the largest group: 6 x 2 accumulators of AVX2's 16 registers, 12 x 2 of AVX-512's 32.
constexpr int kGroup = MCF_VECTOR_BYTES == 64 ? 12 : 6;

constexpr int64_t groups_of(int64_t columns) { return parts_of(columns, kGroup); }

// One of `parts` parts of M [n, p] in groups of columns, [n, columns of the group] each, and of M^T, scaled, likewise;
// without `gradient` of the first only.
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

// The copies of some rows that a run works on, in blocks. The last block has one vector where one is enough; its rows
// are padded with zeros. The rule's states follow X, `pitch` vectors apart.
template <typename T>
struct BlockState {
  typedef T Element;
  static constexpr int64_t lanes = Simd<T>::lanes;
  int64_t rows, n, p, vectors, pitch;
  int states;
  T *x, *y, *r;

  BlockState(int64_t rows, int64_t n, int64_t p, int states, T* work)
      : rows(rows),
        n(n),
        p(p),
        vectors(vectors_of(rows)),
        pitch(vectors * n),
        states(states),
        x(work),
        y(x + (1 + states) * pitch * lanes),
        r(y + vectors * lanes * p) {}
  static int64_t vectors_of(int64_t rows) { return parts_of(rows, lanes); }
  static int64_t elements(int64_t rows, int64_t n, int64_t p, int states) {
    return vectors_of(rows) * lanes * ((1 + states) * n + 2 * p);
  }
  // A slab begins with a whole block; the second slab of a single block with its second vector.
  static int64_t least_rows(const Shape& f) { return f.m <= lanes ? 1 : f.m <= 2 * lanes ? lanes : 2 * lanes; }
  static int64_t packed_elements(const Shape& f) { return 2 * f.n * f.p; }
  static void pack(const T* M, const Shape& f, T scale, T* packed, bool gradient, int64_t part, int64_t parts) {
    pack_groups(M, f.n, f.p, scale, packed, gradient, part, parts);
  }

  int64_t residuals() const { return vectors * lanes * p; }  // elements of r, padding included
  T* state(int k) const { return x + (k + 1) * pitch * lanes; }

  void load(const Descent<T>& q, Rows part) const {
    to_blocks(q.X + part.begin * n, n, x);
    to_blocks(q.Y + part.begin * p, p, y);
    for (int k = 0; k < states; ++k) to_blocks(q.state[k] + part.begin * n, n, state(k));
  }
  void store(const Descent<T>& q, Rows part) const {
    from_blocks(x, n, q.X + part.begin * n);
    for (int k = 0; k < states; ++k) from_blocks(state(k), n, q.state[k] + part.begin * n);
  }
  void load_residual(const Descent<T>& q, Rows part) const { to_blocks(q.R + part.begin * p, p, r); }
  void store_residual(const Descent<T>& q, Rows part) const { from_blocks(r, p, q.R + part.begin * p); }

  // Calls f(element, entry, count, width) for pieces of a row: `count` entries of the matrix [rows, columns] from
  // `entry` on are the elements of the blocks from `element` on, `width` apart. A piece is a cache line, so that the
  // lines of the columns that one row touches are still cached for the next.
  template <typename F>
  MCF_INLINE_MEMBER void for_pieces(int64_t columns, const F& f) const {
    constexpr int64_t block = 2 * lanes, line = 64 / sizeof(T);
    for (int64_t begin = 0; begin < rows; begin += block) {
      const int64_t left = vectors * lanes - begin, width = left < block ? left : block;
      const int64_t height = rows - begin < width ? rows - begin : width;
      for (int64_t k = 0; k < columns; k += line)
        for (int64_t i = 0; i < height; ++i)
          f(begin * columns + k * width + i, (begin + i) * columns + k, columns - k < line ? columns - k : line, width);
    }
  }

  // A matrix [rows, columns], to blocks and back.
  void to_blocks(const T* from, int64_t columns, T* to) const {
    if (rows < vectors * lanes)
      for (int64_t k = rows / (2 * lanes) * 2 * lanes * columns; k < vectors * lanes * columns; ++k) to[k] = 0;
    for_pieces(columns, [&](int64_t element, int64_t entry, int64_t count, int64_t width) {
      for (int64_t k = 0; k < count; ++k) to[element + k * width] = from[entry + k];
    });
  }
  void from_blocks(const T* from, int64_t columns, T* to) const {
    for_pieces(columns, [&](int64_t element, int64_t entry, int64_t count, int64_t width) {
      for (int64_t k = 0; k < count; ++k) to[entry + k] = from[element + k * width];
    });
  }
};

// Calls f(block's first vector, its vectors, group's first column, its columns), the counts as integral constants.
// Groups are the outer loop: one group stays in the first cache for all blocks.
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

// The sum of squares without the padding, each square in float64.
template <typename T>
double wide_total(const BlockState<T>& s) {
  double sum = 0;
  s.for_pieces(s.p, [&](int64_t element, int64_t, int64_t count, int64_t width) {
    for (int64_t k = 0; k < count; ++k) {
      const double r = s.r[element + k * width];
      sum += r * r;
    }
  });
  return sum;
}

// A matrix of k columns in blocks times packed groups of M's columns: start_of(element) gives the initial accumulator,
// finish(element, accumulator) receives the final one, and tile(accumulators) receives all of a tile. Splitting the k
// terms into parts that stay in the first cache costs 2 to 15 % at 512 and 1,024.
template <typename T, typename Start, typename Finish, typename Tile>
MCF_INLINE void multiply_blocks(const BlockState<T>& s, const T* matrix, int64_t k, const T* packed, int64_t columns,
                                const Start& start_of, const Finish& finish, const Tile& tile) {
  constexpr int lanes = Simd<T>::lanes;
  for_groups(s, columns, [&](int64_t vector, auto NV, int64_t column, auto C) {
    const int64_t corner = (vector * columns + column * NV.value) * lanes;
    Vec<T> acc[C.value][NV.value];
    for (int c = 0; c < C.value; ++c)
      for (int h = 0; h < NV.value; ++h) acc[c][h] = start_of(corner + (c * NV.value + h) * lanes);
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

template <typename T, class Rule>
void update_slab(const BlockState<T>& s, const Descent<T>& q, const T* packed, const Rule& rule) {
  multiply_blocks(
      s, s.r, q.p, packed + q.n * q.p, q.n, [&](int64_t i) { return start(rule, at(s.state(0) + i)); },
      [&](int64_t i, const Vec<T>& acc) { finish_at(rule, acc, &at(s.x + i), s.pitch); }, [](auto&) {});
}

}  // namespace MCF_ISA
}  // namespace mcf
