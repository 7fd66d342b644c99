// The heavy ball on many small problems: each lane of a vector holds a problem of its own. See advance.h.
//
// Nothing is broadcast, shuffled or padded, and 5 x 7 runs as well as 8 x 8. A lane whose problem has stopped takes the
// next one of the batch, so that those that go on never wait for it.
#pragma once

#include "advance.h"
#include "advance_tiny.h"
#include "microkernel.h"

namespace mcf {
namespace MCF_ISA {

// Matrices of vectors, row-major: x, v [m, n], y, r [m, p], a = M and b = c M [n, p].
template <typename T>
struct Lanes {
  Vec<T>*x, *v, *y, *r, *a, *b;

  Lanes(int64_t m, int64_t n, int64_t p, T* work) {
    x = reinterpret_cast<Vec<T>*>(work);
    v = x + m * n, y = v + m * n, r = y + m * p, a = r + m * p, b = a + n * p;
  }
  static int64_t elements(int64_t m, int64_t n, int64_t p) { return 2 * (m * n + m * p + n * p) * Simd<T>::lanes; }
};

template <typename T>
int64_t lanes_elements(int64_t m, int64_t n, int64_t p) {
  return Lanes<T>::elements(m, n, p);
}

template <typename T>
MCF_INLINE void into_lane(const T* from, int64_t count, T scale, Vec<T>* to, int lane) {
  for (int64_t k = 0; k < count; ++k) to[k][lane] = scale * from[k];
}

template <typename T>
MCF_INLINE void out_of_lane(const Vec<T>* from, int64_t count, T* to, int lane) {
  for (int64_t k = 0; k < count; ++k) to[k] = from[k][lane];
}

// acc[i][j] += sum over q of A[i, q] B[q, j], or B[j, q] with transposed: R x C products a term.
template <typename T, int R, int C, bool transposed>
MCF_INLINE void multiply_lanes(const Vec<T>* A, int64_t lda, const Vec<T>* B, int64_t ldb, int64_t k,
                               Vec<T> (&acc)[R][C]) {
  for (int64_t q = 0; q < k; ++q) {
    Vec<T> b[C];
    for (int j = 0; j < C; ++j) b[j] = transposed ? B[j * ldb + q] : B[q * ldb + j];
    for (int i = 0; i < R; ++i) {
      const Vec<T> a = A[i * lda + q];
      for (int j = 0; j < C; ++j) acc[i][j] += a * b[j];
    }
  }
}

// Calls f(i, j, R, C) for the blocks of a matrix: 4 x 3, and what is left over at its edges.
template <typename F>
MCF_INLINE void for_tiles(int64_t rows, int64_t columns, const F& f) {
  for (int64_t i = 0; i < rows; i += 4)
    with_rows<4>(static_cast<int>(rows - i < 4 ? rows - i : 4), [&](auto R) {
      for (int64_t j = 0; j < columns; j += 3)
        with_rows<3>(static_cast<int>(columns - j < 3 ? columns - j : 3), [&](auto C) { f(i, j, R, C); });
    });
}

template <typename T>
void lanes(const DescentBatch<T>& batch, Queue& queue, T* work) {
  constexpr int width = Simd<T>::lanes;
  const int64_t m = batch.first.m, n = batch.first.n, p = batch.first.p;
  const T c = batch.first.scale;
  const bool unit = batch.first.unit;
  const Lanes<T> s(m, n, p, work);
  for (int64_t k = 0; k < s.elements(m, n, p); ++k) work[k] = T(0);

  Descent<T> problems[width];
  int64_t index[width], made[width] = {};
  Vec<T> lr = {}, momentum = {};
  int busy = 0;
  const auto fill = [&](int lane) {  // with the next problem that runs, if there is one
    int64_t next;
    do next = queue.take();
    while (next < queue.size && !batch.runs(next));
    index[lane] = next < queue.size ? next : -1;
    if (index[lane] < 0) return;
    const Descent<T> q = batch[index[lane]];
    problems[lane] = q, made[lane] = 0, ++busy;
    lr[lane] = q.lr, momentum[lane] = q.momentum;
    into_lane<T>(q.X, m * n, 1, s.x, lane), into_lane<T>(q.V, m * n, 1, s.v, lane);
    into_lane<T>(q.Y, m * p, 1, s.y, lane);
    into_lane<T>(q.M, n * p, 1, s.a, lane), into_lane<T>(q.M, n * p, c, s.b, lane);
  };
  for (int lane = 0; lane < width; ++lane) fill(lane);

  while (busy) {
    Sum<T> sum;
    for_tiles(m, p, [&](int64_t i, int64_t j, auto R, auto C) {
      Vec<T> acc[R.value][C.value];
      for (int a = 0; a < R.value; ++a)
        for (int b = 0; b < C.value; ++b) acc[a][b] = -s.y[(i + a) * p + j + b];
      multiply_lanes<T, R.value, C.value, false>(s.x + i * n, n, s.a + j, p, n, acc);
      for (int a = 0; a < R.value; ++a)
        for (int b = 0; b < C.value; ++b) s.r[(i + a) * p + j + b] = acc[a][b];
      sum.add(squares<T>(acc));
    });
    double totals[width];
    sum.lanes_into(totals);
    bool safe = true;
    for (int lane = 0; lane < width; ++lane) safe &= index[lane] < 0 || safe_total<T>(totals[lane]);
    if (!safe) {
      Sum<T> again;
      double wide[width];
      for (int64_t k = 0; k < m * p; ++k) again.add_square(s.r[k]);
      again.lanes_into(wide);
      for (int lane = 0; lane < width; ++lane) totals[lane] = safe_total<T>(totals[lane]) ? totals[lane] : wide[lane];
    }

    bool ended[width];
    for (int lane = 0; lane < width; ++lane) {
      ended[lane] = index[lane] >= 0 && problems[lane].ends(made[lane], totals[lane]);
      if (!ended[lane]) continue;
      out_of_lane<T>(s.x, m * n, problems[lane].X, lane), out_of_lane<T>(s.v, m * n, problems[lane].V, lane);
      batch.taken[index[lane]] = made[lane];
    }
    if (unit) {
      Vec<T> scale = {};
      for (int lane = 0; lane < width; ++lane) scale[lane] = Descent<T>::over_norm(totals[lane]);
      for (int64_t k = 0; k < m * p; ++k) s.r[k] *= scale;
    }
    for_tiles(m, n, [&](int64_t i, int64_t j, auto R, auto C) {
      Vec<T> acc[R.value][C.value];
      for (int a = 0; a < R.value; ++a)
        for (int b = 0; b < C.value; ++b) acc[a][b] = momentum * s.v[(i + a) * n + j + b];
      multiply_lanes<T, R.value, C.value, true>(s.r + i * p, p, s.b + j * p, p, p, acc);
      for (int a = 0; a < R.value; ++a)
        for (int b = 0; b < C.value; ++b) {
          s.v[(i + a) * n + j + b] = acc[a][b];
          s.x[(i + a) * n + j + b] -= lr * acc[a][b];
        }
    });
    for (int lane = 0; lane < width; ++lane) {  // after the update, which a fresh problem has no residual for yet
      made[lane] += 1;
      if (ended[lane]) --busy, fill(lane);
    }
  }
}

}  // namespace MCF_ISA
}  // namespace mcf
