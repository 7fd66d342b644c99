// Heavy ball of any size: slabs of rows against packed panels of M. See heavy_ball.h.
#pragma once

#include "heavy_ball_tiny.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

struct Rows {  // [begin, end)
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

constexpr Rows part_of(int64_t m, int64_t parts, int64_t part) { return {part * m / parts, (part + 1) * m / parts}; }

// Rows of a slab, about. Each iteration of a slab reads all of M, from the cache that holds it: the further away that
// is, the more rows have to share a read.
template <typename T>
constexpr int64_t target_rows(int64_t n, int64_t p) {
  const int64_t bytes = 2 * n * p * static_cast<int64_t>(sizeof(T));
  return bytes <= (256 << 10) ? 24 : 48;
}

template <typename T>
int64_t slabs(int64_t m, int64_t n, int64_t p) {
  const int64_t count = (m + target_rows<T>(n, p) - 1) / target_rows<T>(n, p);
  return count <= 1 ? 1 : round_up(count, 2);  // even: shared fairly by two threads
}

// The padded copies that a run of some rows works on.
template <typename T>
struct State {
  int64_t n_pad, p_pad;
  T *x, *v, *y, *r;

  State(int64_t rows, int64_t n, int64_t p, T* work) : n_pad(padded<T>(n)), p_pad(padded<T>(p)) {
    x = work, v = x + rows * n_pad, y = v + rows * n_pad, r = y + rows * p_pad;
  }
  int64_t elements(int64_t rows) const { return 2 * rows * (n_pad + p_pad); }
};

template <typename T>
int64_t workspace_elements(int64_t rows, int64_t n, int64_t p) {
  return State<T>(rows, n, p, nullptr).elements(rows);
}

template <typename T>
int64_t packed_elements(int64_t n, int64_t p) {
  return n * padded<T>(p) + p * padded<T>(n);
}

template <typename T>
void pack_both(const T* M, int64_t n, int64_t p, T scale, T* packed) {
  pack(M, n, p, p, 1, T(1), packed);
  pack(M, p, n, 1, p, scale, packed + n * padded<T>(p));
}

// One panel of columns for one block of R rows: r = x M - y; the squares are added to `square`.
template <typename T, int R, int NV>
MCF_INLINE void residual_block(const T* x, int64_t n_pad, int64_t n, const T* panel, const T* y, T* r, int64_t p_pad,
                               Sum<T>& square) {
  constexpr int lanes = Simd<T>::lanes;
  Vec<T> acc[R][NV];
  for (int i = 0; i < R; ++i)
    for (int h = 0; h < NV; ++h) acc[i][h] = -at(y + i * p_pad + h * lanes);
  multiply_panel<T, R, NV>(x, n_pad, panel, n, acc);
  for (int i = 0; i < R; ++i)
    for (int h = 0; h < NV; ++h) {
      at(r + i * p_pad + h * lanes) = acc[i][h];
      square.add_square(acc[i][h]);
    }
}

// One panel of columns for one block of R rows: v = momentum v + r Mt; x -= lr v.
template <typename T, int R, int NV>
MCF_INLINE void update_block(const T* r, int64_t p_pad, int64_t p, const T* panel, T* v, T* x, int64_t n_pad, T lr,
                             T momentum) {
  constexpr int lanes = Simd<T>::lanes;
  Vec<T> acc[R][NV];
  for (int i = 0; i < R; ++i)
    for (int h = 0; h < NV; ++h) acc[i][h] = momentum * at(v + i * n_pad + h * lanes);
  multiply_panel<T, R, NV>(r, p_pad, panel, p, acc);
  for (int i = 0; i < R; ++i)
    for (int h = 0; h < NV; ++h) {
      at(v + i * n_pad + h * lanes) = acc[i][h];
      at(x + i * n_pad + h * lanes) -= lr * acc[i][h];
    }
}

// Calls f(std-free integral constant R) for the number of rows that came: the kernels are instantiated for each.
template <int R>
struct RowCount {
  static constexpr int value = R;
};

template <int R = kMaxRows, typename F>
MCF_INLINE void with_rows(int rows, const F& f) {
  if constexpr (R > 0) {
    if (rows == R)
      f(RowCount<R>{});
    else
      with_rows<R - 1>(rows, f);
  }
}

// Calls f(first row, rows) for blocks of nearly equal height: 8 rows are 4 + 4, not 6 + 2, whose second block would
// waste two thirds of its loads.
template <typename F>
MCF_INLINE void for_blocks(Rows rows, const F& f) {
  const int64_t blocks = (rows.count() + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0; i < blocks; ++i) {
    const Rows block = part_of(rows.count(), blocks, i);
    f(rows.begin + block.begin, static_cast<int>(block.count()));
  }
}

// Panels are the outer loop: one is read into the first cache and serves every block of the slab.
template <typename T, int NV>
double residual_slab_of(const State<T>& s, Rows rows, int64_t n, const T* packed) {
  constexpr int width = NV * Simd<T>::lanes;
  double sum = 0;
  for (int64_t c = 0; c < s.p_pad; c += width) {
    Sum<T> square;
    for_blocks(rows, [&](int64_t row, int count) {
      with_rows(count, [&](auto R) {
        residual_block<T, decltype(R)::value, NV>(s.x + row * s.n_pad, s.n_pad, n, packed + c * n,
                                                  s.y + row * s.p_pad + c, s.r + row * s.p_pad + c, s.p_pad, square);
      });
    });
    sum += square.total();
  }
  return sum;
}

template <typename T, int NV>
void update_slab_of(const State<T>& s, Rows rows, int64_t p, const T* packed, T lr, T momentum) {
  constexpr int width = NV * Simd<T>::lanes;
  for (int64_t c = 0; c < s.n_pad; c += width)
    for_blocks(rows, [&](int64_t row, int count) {
      with_rows(count, [&](auto R) {
        update_block<T, decltype(R)::value, NV>(s.r + row * s.p_pad, s.p_pad, p, packed + c * p,
                                                s.v + row * s.n_pad + c, s.x + row * s.n_pad + c, s.n_pad, lr,
                                                momentum);
      });
    });
}

template <typename T>
MCF_INLINE double residual_slab(const State<T>& s, Rows rows, const HeavyBall<T>& q, const T* packed) {
  return panel_vectors<T>(q.p) == 1 ? residual_slab_of<T, 1>(s, rows, q.n, packed)
                                    : residual_slab_of<T, 2>(s, rows, q.n, packed);
}

template <typename T>
MCF_INLINE void update_slab(const State<T>& s, Rows rows, const HeavyBall<T>& q, const T* packed) {
  const T* transposed = packed + q.n * s.p_pad;
  if (panel_vectors<T>(q.n) == 1)
    update_slab_of<T, 1>(s, rows, q.p, transposed, q.lr, q.momentum);
  else
    update_slab_of<T, 2>(s, rows, q.p, transposed, q.lr, q.momentum);
}

template <typename T>
MCF_INLINE void copy_rows(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[i * to_stride + j] = from[i * from_stride + j];
}

// The state of rows [begin, end) of the problem, numbered from 0.
template <typename T>
MCF_INLINE State<T> load(const HeavyBall<T>& q, Rows rows, T* work) {
  const State<T> s(rows.count(), q.n, q.p, work);
  for (int64_t i = 0; i < s.elements(rows.count()); ++i) work[i] = T(0);
  copy_rows<T>(q.X + rows.begin * q.n, q.n, s.x, s.n_pad, rows.count(), q.n);
  copy_rows<T>(q.V + rows.begin * q.n, q.n, s.v, s.n_pad, rows.count(), q.n);
  copy_rows<T>(q.Y + rows.begin * q.p, q.p, s.y, s.p_pad, rows.count(), q.p);
  return s;
}

template <typename T>
MCF_INLINE void store(const State<T>& s, const HeavyBall<T>& q, Rows rows) {
  copy_rows<T>(s.x, s.n_pad, q.X + rows.begin * q.n, q.n, rows.count(), q.n);
  copy_rows<T>(s.v, s.n_pad, q.V + rows.begin * q.n, q.n, rows.count(), q.n);
}

template <typename T>
int64_t lockstep(const HeavyBall<T>& q, const T* packed, T* work) {
  if (q.m <= 4 && q.n <= 4 && q.p <= 4 && !q.unit) return tiny(q, packed);
  const Rows all{0, q.m};
  const State<T> s = load(q, all, work);
  const int64_t count = slabs<T>(q.m, q.n, q.p);
  int64_t j = 0;
  for (;; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += residual_slab(s, part_of(q.m, count, i), q, packed);
    if (stops(q, j, sum)) break;
    if (q.unit) {  // the gradient of ||R|| is R M^T / ||R||, and 0 where R is
      const T scale = sum > 0 ? static_cast<T>(1 / __builtin_sqrt(sum)) : T(0);
      for (int64_t i = 0; i < q.m * s.p_pad; ++i) s.r[i] *= scale;
    }
    for (int64_t i = 0; i < count; ++i) update_slab(s, part_of(q.m, count, i), q, packed);
  }
  store(s, q, all);
  return j;
}

template <typename T>
int64_t alone(const HeavyBall<T>& q, int64_t slab, const T* packed, T* work) {
  const int64_t count = slabs<T>(q.m, q.n, q.p);
  if (count == 1) {
    HeavyBall<T> through = q;
    through.threshold = -1, through.bail = __builtin_inf();
    return lockstep(through, packed, work);
  }
  const Rows rows = part_of(q.m, count, slab), all{0, rows.count()};
  const State<T> s = load(q, rows, work);
  for (int64_t j = 0; j < q.limit; ++j) {
    q.sums[j] = residual_slab(s, all, q, packed);
    update_slab(s, all, q, packed);
  }
  q.sums[q.limit] = residual_slab(s, all, q, packed);
  store(s, q, rows);
  return q.limit;
}

template <typename T>
constexpr HeavyBallKernels<T> heavy_ball_kernels() {
  return {slabs<T>, packed_elements<T>, workspace_elements<T>, pack_both<T>, lockstep<T>, alone<T>};
}

}  // namespace MCF_ISA
}  // namespace mcf
