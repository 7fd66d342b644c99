// The vocabulary of `advance`: many updates of X on R = X M - Y in one call. Contract: matconv_fast/_reference.py.
//
// The gradient is G = c R M^T, or c R without an M; rules.h holds what each rule does with it. Rows of X are
// independent of each other under mse and sse, so a problem is cut into slabs of rows, by its shape alone. One thread
// takes all slabs through each iteration, or the threads share the slabs and each slab makes many iterations by itself
// (parallel_slabs.h); both give the same bits. choose_algorithm.h lists the algorithms. All of them stop exactly.
#pragma once

#include <cstdint>

namespace mcf {

struct Rows {  // [begin, end)
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// Items [0, size) that threads draw one by one, so that no thread waits for a slower one or for longer items. Results
// must not depend on which thread has which item.
struct Queue {
  int64_t size, position = 0;

  // The next item; `size` or more when none is left.
  __attribute__((always_inline)) inline int64_t next() { return __atomic_fetch_add(&position, 1, __ATOMIC_RELAXED); }
};

// Number of parts of at most `size` rows.
constexpr int64_t parts_of(int64_t m, int64_t size) { return (m + size - 1) / size; }

// One of `parts` nearly equal parts of m rows.
constexpr Rows part_of(int64_t m, int64_t parts, int64_t part) { return {part * m / parts, (part + 1) * m / parts}; }

// X [m, n], M [n, p] and Y [m, p]; without an M, n equals p.
struct Shape {
  int64_t m, n, p;
  bool product;  // whether there is an M
  bool coupled;  // loss fro: c is 1 / ||R||, which couples the rows
};

// The largest problems that these algorithms hold.
constexpr int64_t kTinySize = 4;                        // m, n and p
constexpr int64_t kSmallRows = 24, kSmallColumns = 16;  // m; n and p

constexpr int kMaxStates = 4;  // matrices of a rule besides X, at most

// The hyperparameters of one problem, in the order of its rule.
struct Hyper {
  const double* first;
  int64_t stride;
  __attribute__((always_inline)) inline double operator[](int64_t h) const { return first[h * stride]; }
};

template <typename T>
struct Descent : Shape {  // one contiguous problem
  T* X;                   // [m, n], updated in place, as is
  T* state[kMaxStates];   // [m, n] each, the rule's matrices
  const T* M;             // [n, p]
  const T* Y;             // [m, p]
  T* R;                   // [m, p], the residual that parallel slabs and gemm keep between calls, or null
  bool R_is_current;      // R is the residual of X already, and sums[0] its sum
  T scale;                // c; under fro before the division by ||R||
  Hyper hyper;
  int64_t step;            // updates made before this call
  int64_t limit;           // updates to make, at most
  bool last_sum;           // whether the sum of the last iterate is wanted; a single step does without
  bool stops;              // whether threshold and bail count; a slab by itself ignores them
  double threshold, bail;  // stop at the first iterate with ||R||^2 <= threshold, or not <= bail
  double* sums;            // [limit + 1]: ||R||^2 of each iterate visited; a slab's share where it runs by itself

  // Whether the problem stops at an iterate with this sum. NaN fails both comparisons and stops it too.
  __attribute__((always_inline)) inline bool stops_at(double sum) const {
    return stops && (sum <= threshold || !(sum <= bail));
  }

  // Records the sum of iterate j; returns whether the iteration ends there.
  __attribute__((always_inline)) inline bool ends(int64_t j, double sum) const {
    sums[j] = sum;
    return j == limit || stops_at(sum);
  }

  // The factor of R under fro: the gradient of ||R|| is R M^T / ||R||, and 0 where R is 0.
  static __attribute__((always_inline)) inline T over_norm(double sum) {
    return sum > 0 ? static_cast<T>(1 / __builtin_sqrt(sum)) : T(0);
  }
};

// When each problem of a batch stops, [batch] each. A null pointer: as in the batch's `first`.
struct StopCriteria {
  const int64_t* limit;  // negative: no updates, nothing is written
  const double *threshold, *bail;
};

// What a batch records.
struct Trace {
  double* sums;  // [batch, columns]
  int64_t columns;
  int64_t* steps_done;  // [batch], or null
};

// A batch of problems of one shape. The matrices of problem b begin b times their size or stride after those of
// `first`.
template <typename T>
struct DescentBatch {
  Descent<T> first;
  int64_t size;
  int64_t M_stride, Y_stride, hyper_stride;  // 0 where all problems share it
  const int64_t* step;                       // [batch], or null: 0
  StopCriteria criteria;
  Trace trace;

  __attribute__((always_inline)) inline bool runs(int64_t b) const { return !criteria.limit || criteria.limit[b] >= 0; }

  __attribute__((always_inline)) inline Descent<T> operator[](int64_t b) const {
    Descent<T> q = first;
    const int64_t last = trace.columns - 1;
    q.X += b * q.m * q.n, q.Y += b * Y_stride, q.M += b * M_stride, q.hyper.first += b * hyper_stride;
    for (T*& state : q.state)
      if (state) state += b * q.m * q.n;
    if (q.R) q.R += b * q.m * q.p;
    q.sums = trace.sums + b * trace.columns;
    q.R_is_current = q.R && q.sums[0] == q.sums[0];  // not NaN
    if (step) q.step = step[b];
    if (criteria.limit) q.limit = criteria.limit[b] < last ? criteria.limit[b] : last;
    if (criteria.threshold) q.threshold = criteria.threshold[b];
    if (criteria.bail) q.bail = criteria.bail[b];
    return q;
  }
};

// How an algorithm cuts a problem into slabs and packs M for them. Packed and workspace are aligned to 64 bytes.
template <typename T>
struct SlabLayout {
  int64_t (*slabs)(const Shape& shape);
  Rows (*rows)(const Shape& shape, int64_t slab);
  int64_t (*packed_elements)(const Shape& shape);
  int64_t (*workspace_elements)(const Shape& shape, int states, bool one_slab);
  // one of `parts` parts of M; without `gradient` only what a residual needs
  void (*pack)(const T* M, const Shape& shape, T scale, T* packed, bool gradient, int64_t part, int64_t parts);
};

// The iterations of one rule by one algorithm; both return the updates made.
template <typename T>
struct SlabRunner {
  int64_t (*whole)(const Descent<T>& problem, const T* packed, T* workspace);
  int64_t (*slab)(const Descent<T>& problem, int64_t slab, const T* packed, T* workspace);
};

// The algorithms that work on slabs, as indices of the tables below. A tiny problem is one slab.
enum SlabAlgorithm { kTinySlab, kSmallSlab, kRowSlab, kBlockSlab, kSlabAlgorithms };

template <typename T>
struct RuleKernels {
  const char* name;
  int states, hypers;
  bool accumulates;  // see rules.h
  SlabRunner<T> slabs[kSlabAlgorithms];
  // The problems of a batch that the queue gives, one in each lane of a vector; writes the trace.
  void (*lanes)(const DescentBatch<T>& batch, Queue& queue, T* workspace);
  T (*decay)(const Descent<T>& problem);
  // Update j on `count` elements of X and the states from `begin` on, given G; of a rule that accumulates, state[0] is
  // decay * state[0] + G already, and G is null.
  void (*sweep)(const Descent<T>& problem, int64_t j, const T* G, int64_t begin, int64_t count);
};

template <typename T>
struct AdvanceKernels {
  SlabLayout<T> layouts[kSlabAlgorithms];
  int64_t (*lanes_elements)(const Shape& shape, int states);
  const RuleKernels<T>* rules;
  int rule_count;
};

}  // namespace mcf
