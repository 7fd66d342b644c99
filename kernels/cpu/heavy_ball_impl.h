// R = X M - Y;  G = scale R M^T;  V = momentum V + G;  X = X - lr V, until limit, threshold or bail.
//
// One thread runs one problem from start to stop, every row block in lockstep, so the loss of an iterate is known
// before its update and the stop is exact. M is packed once in both orientations, the second one already scaled.
#pragma once

#include "heavy_ball.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

// True where the iteration ends at this iterate. A NaN fails both comparisons and ends it too.
template <typename T>
MCF_INLINE bool record_and_stop(HeavyBall<T>& q, int64_t j, double sum) {
  q.sums[j] = sum;
  q.taken = j;
  return j == q.limit || sum <= q.threshold || !(sum <= q.bail);
}

// ---- m, n, p <= 4: the whole problem in registers ------------------------------------------------------------------
// A vector holds as many 4-wide rows as fit. An element of a row reaches the other columns by a shuffle inside its
// group of four lanes, one cycle, where a store and a broadcasting load would take eight.

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define MCF_SPREAD4(v, q) __builtin_shufflevector(v, v, q, q, q, q)
#define MCF_SPREAD8(v, q) __builtin_shufflevector(v, v, q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q)
#define MCF_SPREAD16(v, q)                                                                                          \
  __builtin_shufflevector(v, v, q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q, 8 + q, 8 + q, 8 + q, 8 + q, 12 + q, 12 + q, \
                          12 + q, 12 + q)
#else
#define MCF_SPREAD4(v, q) __builtin_shuffle(v, typename Tiny<T>::Mask{q, q, q, q})
#define MCF_SPREAD8(v, q) __builtin_shuffle(v, typename Tiny<T>::Mask{q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q})
#define MCF_SPREAD16(v, q)                                                                                        \
  __builtin_shuffle(v, typename Tiny<T>::Mask{q, q, q, q, 4 + q, 4 + q, 4 + q, 4 + q, 8 + q, 8 + q, 8 + q, 8 + q, \
                                              12 + q, 12 + q, 12 + q, 12 + q})
#endif

template <int Bytes>
struct IntOfSize;
template <>
struct IntOfSize<4> {
  typedef int type;
};
template <>
struct IntOfSize<8> {
  typedef long long type;
};

template <typename T>
struct Tiny {
  static constexpr int rows = Simd<T>::lanes < 4 ? 1 : Simd<T>::lanes / 4;  // rows in one vector
  static constexpr int lanes = 4 * rows;
  static constexpr int count = 4 / rows;  // vectors that hold four rows
  typedef T Vec __attribute__((vector_size(4 * rows * sizeof(T))));
  typedef typename IntOfSize<sizeof(T)>::type Mask __attribute__((vector_size(4 * rows * sizeof(T))));
};

// v's rows times the 4 x 4 matrix whose rows b repeats: two chains of two, for half the latency of one of four.
template <typename T>
MCF_INLINE typename Tiny<T>::Vec tiny_product(const typename Tiny<T>::Vec& v, const typename Tiny<T>::Vec (&b)[4],
                                              const typename Tiny<T>::Vec& start) {
  typename Tiny<T>::Vec even, odd;
  if constexpr (Tiny<T>::lanes == 4) {
    even = MCF_SPREAD4(v, 0) * b[0] + start, odd = MCF_SPREAD4(v, 1) * b[1];
    even += MCF_SPREAD4(v, 2) * b[2], odd += MCF_SPREAD4(v, 3) * b[3];
  } else if constexpr (Tiny<T>::lanes == 8) {
    even = MCF_SPREAD8(v, 0) * b[0] + start, odd = MCF_SPREAD8(v, 1) * b[1];
    even += MCF_SPREAD8(v, 2) * b[2], odd += MCF_SPREAD8(v, 3) * b[3];
  } else {
    even = MCF_SPREAD16(v, 0) * b[0] + start, odd = MCF_SPREAD16(v, 1) * b[1];
    even += MCF_SPREAD16(v, 2) * b[2], odd += MCF_SPREAD16(v, 3) * b[3];
  }
  return even + odd;
}

template <typename T>
MCF_INLINE void heavy_ball_tiny(HeavyBall<T>& q) {
  typedef Tiny<T> S;
  typedef typename S::Vec V4;
  V4 x[S::count], v[S::count], minus_y[S::count], m[4], mt[4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int vec = i / S::rows, lane = i % S::rows * 4 + j;
      x[vec][lane] = i < q.m && j < q.n ? q.X[i * q.n + j] : T(0);
      v[vec][lane] = i < q.m && j < q.n ? q.V[i * q.n + j] : T(0);
      minus_y[vec][lane] = i < q.m && j < q.p ? -q.Y[i * q.p + j] : T(0);
      for (int row = 0; row < S::rows; ++row) {
        m[i][row * 4 + j] = i < q.n && j < q.p ? q.M[i * q.p + j] : T(0);
        mt[i][row * 4 + j] = i < q.p && j < q.n ? q.scale * q.M[j * q.p + i] : T(0);
      }
    }
  for (int64_t j = 0;; ++j) {
    V4 r[S::count], square = {};
#pragma GCC unroll 4
    for (int i = 0; i < S::count; ++i) {
      r[i] = tiny_product<T>(x[i], m, minus_y[i]);
      square += r[i] * r[i];
    }
    if (record_and_stop(q, j, lane_sum(square, S::lanes))) break;
#pragma GCC unroll 4
    for (int i = 0; i < S::count; ++i) {
      v[i] = tiny_product<T>(r[i], mt, q.momentum * v[i]);
      x[i] -= q.lr * v[i];
    }
  }
  for (int i = 0; i < q.m; ++i)
    for (int j = 0; j < q.n; ++j) {
      q.X[i * q.n + j] = x[i / S::rows][i % S::rows * 4 + j];
      q.V[i * q.n + j] = v[i / S::rows][i % S::rows * 4 + j];
    }
}

// ---- any size: packed panels, blocks of R rows ---------------------------------------------------------------------

template <typename T>
struct Layout {  // of the workspace: padded copies of X, V, Y, R and the packed M in both orientations
  int64_t n_pad, p_pad, x, v, y, r, m, mt, elements;
  Layout(int64_t rows, int64_t n, int64_t p) : n_pad(padded<T>(n)), p_pad(padded<T>(p)) {
    x = 0, v = x + rows * n_pad, y = v + rows * n_pad, r = y + rows * p_pad, m = r + rows * p_pad;
    mt = m + n * p_pad, elements = mt + p * n_pad;
  }
};

template <typename T, int R, int NV>
MCF_INLINE Vec<T> residual_rows(const T* x, int64_t n_pad, int64_t n, const T* panels, const T* y, T* r,
                                int64_t p_pad) {
  constexpr int lanes = Simd<T>::lanes;
  Vec<T> square = {};
  for (int64_t c = 0; c < p_pad; c += NV * lanes) {
    Vec<T> acc[R][NV];
    for (int i = 0; i < R; ++i)
      for (int h = 0; h < NV; ++h) acc[i][h] = -at(y + i * p_pad + c + h * lanes);
    multiply_panel<T, R, NV>(x, n_pad, panels + c * n, n, acc);
    for (int i = 0; i < R; ++i)
      for (int h = 0; h < NV; ++h) {
        at(r + i * p_pad + c + h * lanes) = acc[i][h];
        square += acc[i][h] * acc[i][h];
      }
  }
  return square;
}

template <typename T, int R, int NV>
MCF_INLINE void update_rows(const T* r, int64_t p_pad, int64_t p, const T* panels, T* v, T* x, int64_t n_pad, T lr,
                            T momentum) {
  constexpr int lanes = Simd<T>::lanes;
  for (int64_t c = 0; c < n_pad; c += NV * lanes) {
    Vec<T> acc[R][NV];
    for (int i = 0; i < R; ++i)
      for (int h = 0; h < NV; ++h) acc[i][h] = momentum * at(v + i * n_pad + c + h * lanes);
    multiply_panel<T, R, NV>(r, p_pad, panels + c * p, p, acc);
    for (int i = 0; i < R; ++i)
      for (int h = 0; h < NV; ++h) {
        at(v + i * n_pad + c + h * lanes) = acc[i][h];
        at(x + i * n_pad + c + h * lanes) -= lr * acc[i][h];
      }
  }
}

// Both passes over one block, by number of rows and vectors in a panel: tables of kMaxRows x 2 functions.
template <typename T>
struct Block {
  T *x, *v, *y, *r;
  const T *m, *mt;
  int64_t n, p, n_pad, p_pad;
  T lr, momentum;
};

template <typename T, int R>
double residual_block(const Block<T>& b) {
  const Vec<T> square = panel_vectors<T>(b.p) == 1 ? residual_rows<T, R, 1>(b.x, b.n_pad, b.n, b.m, b.y, b.r, b.p_pad)
                                                   : residual_rows<T, R, 2>(b.x, b.n_pad, b.n, b.m, b.y, b.r, b.p_pad);
  return lane_sum(square, Simd<T>::lanes);
}

template <typename T, int R>
void update_block(const Block<T>& b) {
  if (panel_vectors<T>(b.n) == 1)
    update_rows<T, R, 1>(b.r, b.p_pad, b.p, b.mt, b.v, b.x, b.n_pad, b.lr, b.momentum);
  else
    update_rows<T, R, 2>(b.r, b.p_pad, b.p, b.mt, b.v, b.x, b.n_pad, b.lr, b.momentum);
}

template <typename T, int R>
MCF_INLINE double residual_of(int rows, const Block<T>& b) {
  if constexpr (R == 0)
    return 0;
  else
    return rows == R ? residual_block<T, R>(b) : residual_of<T, R - 1>(rows, b);
}

template <typename T, int R>
MCF_INLINE void update_of(int rows, const Block<T>& b) {
  if constexpr (R > 0) rows == R ? update_block<T, R>(b) : update_of<T, R - 1>(rows, b);
}

template <typename T>
MCF_INLINE void copy_rows(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[i * to_stride + j] = from[i * from_stride + j];
}

template <typename T>
MCF_INLINE void heavy_ball_panels(HeavyBall<T>& q, T* work) {
  const Layout<T> at_(q.m, q.n, q.p);
  for (int64_t i = 0; i < at_.m; ++i) work[i] = T(0);
  copy_rows(q.X, q.n, work + at_.x, at_.n_pad, q.m, q.n);
  copy_rows(q.V, q.n, work + at_.v, at_.n_pad, q.m, q.n);
  copy_rows(q.Y, q.p, work + at_.y, at_.p_pad, q.m, q.p);
  pack(q.M, q.n, q.p, q.p, 1, T(1), work + at_.m);
  pack(q.M, q.p, q.n, 1, q.p, q.scale, work + at_.mt);

  // Blocks of nearly equal height: 8 rows are 4 + 4, not 6 + 2, whose second block would waste two thirds of its loads.
  const int64_t blocks = (q.m + kMaxRows - 1) / kMaxRows;
  const auto block = [&](int64_t i) {
    const int64_t row = i * q.m / blocks;
    return Block<T>{work + at_.x + row * at_.n_pad,
                    work + at_.v + row * at_.n_pad,
                    work + at_.y + row * at_.p_pad,
                    work + at_.r + row * at_.p_pad,
                    work + at_.m,
                    work + at_.mt,
                    q.n,
                    q.p,
                    at_.n_pad,
                    at_.p_pad,
                    q.lr,
                    q.momentum};
  };
  const auto rows = [&](int64_t i) { return static_cast<int>((i + 1) * q.m / blocks - i * q.m / blocks); };
  for (int64_t j = 0;; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < blocks; ++i) sum += residual_of<T, kMaxRows>(rows(i), block(i));
    if (record_and_stop(q, j, sum)) break;
    for (int64_t i = 0; i < blocks; ++i) update_of<T, kMaxRows>(rows(i), block(i));
  }
  copy_rows(work + at_.x, at_.n_pad, q.X, q.n, q.m, q.n);
  copy_rows(work + at_.v, at_.n_pad, q.V, q.n, q.m, q.n);
}

template <typename T>
int64_t heavy_ball_workspace(int64_t m, int64_t n, int64_t p) {
  return Layout<T>(m, n, p).elements;
}

template <typename T>
void heavy_ball(HeavyBall<T>* problem, T* workspace) {
  if (problem->m <= 4 && problem->n <= 4 && problem->p <= 4)
    heavy_ball_tiny(*problem);
  else
    heavy_ball_panels(*problem, workspace);
}

constexpr Kernels kernels(const char* name) {
  return {name, heavy_ball_workspace<float>, heavy_ball_workspace<double>, heavy_ball<float>, heavy_ball<double>};
}

}  // namespace MCF_ISA
}  // namespace mcf
