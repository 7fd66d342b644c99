// Algorithm `lanes`: many small problems, each lane of a vector holds a problem of its own.
//
// Nothing is broadcast, shuffled or padded, and 5 x 7 runs as well as 8 x 8. A lane whose problem has stopped draws the
// next problem of the batch, so that the other lanes never wait for it.
#pragma once

#include "microkernel.h"
#include "rules.h"

namespace mcf {
namespace MCF_ISA {

// Row-major matrices of vectors: x, then the states [m, n], y, r [m, p], a = M and b = c M [n, p].
template <typename T>
struct Lanes {
  int64_t pitch;  // vectors from x to the first state, and so on
  Vec<T>*x, *y, *r, *a, *b;

  Lanes(const Shape& f, int states, T* work) : pitch(f.m * f.n) {
    x = reinterpret_cast<Vec<T>*>(work);
    y = x + (1 + states) * pitch, r = y + f.m * f.p, a = r + f.m * f.p, b = a + f.n * f.p;
  }
};

template <typename T>
int64_t lanes_elements(const Shape& f, int states) {
  return ((1 + states) * f.m * f.n + 2 * f.m * f.p + 2 * f.n * f.p) * Simd<T>::lanes;
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

// Calls f(i, j, R, C) for the blocks of a matrix: 4 x 3, smaller ones at its edges.
template <typename F>
MCF_INLINE void for_tiles(int64_t rows, int64_t columns, const F& f) {
  for (int64_t i = 0; i < rows; i += 4)
    with_rows<4>(static_cast<int>(rows - i < 4 ? rows - i : 4), [&](auto R) {
      for (int64_t j = 0; j < columns; j += 3)
        with_rows<3>(static_cast<int>(columns - j < 3 ? columns - j : 3), [&](auto C) { f(i, j, R, C); });
    });
}

template <typename T, template <typename, typename> class RuleOf>
void lanes(const DescentBatch<T>& batch, Queue& queue, T* work) {
  constexpr int width = Simd<T>::lanes;
  typedef RuleOf<Vec<T>, Vec<T>> Rule;
  const int64_t m = batch.first.m, n = batch.first.n, p = batch.first.p;
  const Lanes<T> s(batch.first, Rule::states, work);
  for (int64_t k = 0; k < lanes_elements<T>(batch.first, Rule::states); ++k) work[k] = T(0);

  Rule rule = {};
  Descent<T> problems[width];
  int64_t index[width], step[width] = {};
  int busy = 0;
  const auto fill = [&](int lane) {  // with the next problem that runs, if there is one
    int64_t next;
    do next = queue.next();
    while (next < queue.size && !batch.runs(next));
    index[lane] = next < queue.size ? next : -1;
    if (index[lane] < 0) return;
    const Descent<T> q = batch[index[lane]];
    problems[lane] = q, step[lane] = 0, ++busy;
    begin_run(rule, q, lane);
    into_lane<T>(q.X, m * n, 1, s.x, lane), into_lane<T>(q.Y, m * p, 1, s.y, lane);
    for (int k = 0; k < Rule::states; ++k) into_lane<T>(q.state[k], m * n, 1, s.x + (k + 1) * s.pitch, lane);
    into_lane<T>(q.M, n * p, 1, s.a, lane), into_lane<T>(q.M, n * p, q.scale, s.b, lane);
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
      Sum<T> wide_sum;
      double wide[width];
      for (int64_t k = 0; k < m * p; ++k) wide_sum.add_square(s.r[k]);
      wide_sum.lanes_into(wide);
      for (int lane = 0; lane < width; ++lane) totals[lane] = safe_total<T>(totals[lane]) ? totals[lane] : wide[lane];
    }

    bool ended[width];
    for (int lane = 0; lane < width; ++lane) {
      const Descent<T>& q = problems[lane];
      ended[lane] = index[lane] >= 0 && q.ends(step[lane], totals[lane]);
      if (index[lane] >= 0) begin_step(rule, q, step[lane], lane);
      if (!ended[lane]) continue;
      out_of_lane<T>(s.x, m * n, q.X, lane);
      for (int k = 0; k < Rule::states; ++k) out_of_lane<T>(s.x + (k + 1) * s.pitch, m * n, q.state[k], lane);
      batch.trace.steps_done[index[lane]] = step[lane];
    }
    if (batch.first.coupled) {
      Vec<T> scale = {};
      for (int lane = 0; lane < width; ++lane) scale[lane] = Descent<T>::over_norm(totals[lane]);
      for (int64_t k = 0; k < m * p; ++k) s.r[k] *= scale;
    }
    const Rule current = rule;  // captured by value, its coefficients stay in registers: up to 9 % less at 8 x 8
    for_tiles(m, n, [&, current](int64_t i, int64_t j, auto R, auto C) {
      Vec<T> acc[R.value][C.value];
      for (int a = 0; a < R.value; ++a)
        for (int b = 0; b < C.value; ++b) acc[a][b] = start(current, s.x[s.pitch + (i + a) * n + j + b]);
      multiply_lanes<T, R.value, C.value, true>(s.r + i * p, p, s.b + j * p, p, p, acc);
      for (int a = 0; a < R.value; ++a)
        for (int b = 0; b < C.value; ++b) finish_at(current, acc[a][b], s.x + (i + a) * n + j + b, s.pitch);
    });
    for (int lane = 0; lane < width; ++lane) {  // after the update: a fresh problem has no residual for it yet
      step[lane] += 1;
      if (ended[lane]) --busy, fill(lane);
    }
  }
}

}  // namespace MCF_ISA
}  // namespace mcf
