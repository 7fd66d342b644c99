// `advance`: many iterations of descent on R = X M - Y, in one call. Contract in matconv_fast/_reference.py.
//
//   heavy ball:  V = momentum V + G;  X = X - lr V         with G = c R M^T, or c R where there is no M
//   Adam:        first = b1 first + (1 - b1) G;  second = b2 second + (1 - b2) G^2;
//                X = X - rate first / (sqrt(second) + floor)      rate, floor: lr and eps with the bias corrected
//
// Rows of X do not talk to each other under mse and sse, so a problem is cut into slabs of rows, by its shape alone.
// Two ways to run them give the same bits: in lockstep one thread takes every slab through each iteration; alone, each
// slab makes many iterations by itself, on any thread, and what went past its stop is run again
// (advance_stretches.h). M is packed once for all of them, in both orientations, the second one scaled by c. In two
// more ways, many small problems run in the lanes of a vector, a problem each, and large ones on torch's GEMM, with the
// sweeps of sweep.h after each product. All of them stop exactly.
#pragma once

#include <cstdint>

namespace mcf {

struct Rows {  // [begin, end)
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// Items [0, size) that threads take one by one, so that none waits for one that is slower, or has longer items. Which
// thread has which must not show in a result.
struct Queue {
  int64_t size, next = 0;

  // One that nobody has had; `size` or more when none is left.
  __attribute__((always_inline)) inline int64_t take() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }
};

// Parts of at most `size` rows.
constexpr int64_t parts_of(int64_t m, int64_t size) { return (m + size - 1) / size; }

// One of `parts` nearly equal parts of m rows.
constexpr Rows part_of(int64_t m, int64_t parts, int64_t part) { return {part * m / parts, (part + 1) * m / parts}; }

// X [m, n], M [n, p] and Y [m, p]; without an M n is p.
struct Shape {
  int64_t m, n, p;
  bool product;  // whether there is an M
  bool once;     // whether there is but one update to make, for which no change of layout pays
};

template <typename T>
struct Descent : Shape {  // one contiguous problem
  T* X;                   // [m, n], updated in place, like
  T* V;                   // [m, n], the momentum, or Adam's first moment
  T* S;                   // [m, n], Adam's second moment
  const T* M;             // [n, p]
  const T* Y;             // [m, p]
  T* R;  // [m, p], the residual, kept from one call to the next by slabs alone and with the GEMM; or null
  T lr, momentum, scale;                  // scale is c
  double first_decay, second_decay, eps;  // of Adam
  double made;                            // updates that Adam has made before
  bool known;                             // whether R is that of X already, and sums[0] its sum
  bool unit;                              // loss fro: c is 1 / ||R||, which couples the rows: not alone
  int64_t limit;                          // updates, at most
  bool last_sum;                          // whether the sum of the last iterate is wanted: a single step does without
  bool stops;                             // whether threshold and bail count; alone they do not
  double threshold, bail;                 // stop at the first iterate with ||R||^2 <= threshold, or not <= bail
  double* sums;                           // [limit + 1]: ||R||^2 of each iterate visited (of a slab alone: its share)

  // Whether the problem stops at an iterate with this sum. A NaN fails both comparisons, and stops it too.
  __attribute__((always_inline)) inline bool stops_at(double sum) const {
    return stops && (sum <= threshold || !(sum <= bail));
  }

  // Records the sum of iterate j; whether the iteration ends there.
  __attribute__((always_inline)) inline bool ends(int64_t j, double sum) const {
    sums[j] = sum;
    return j == limit || stops_at(sum);
  }

  // What R is scaled by under fro: the gradient of ||R|| is R M^T / ||R||, and 0 where R is.
  static __attribute__((always_inline)) inline T over_norm(double sum) {
    return sum > 0 ? static_cast<T>(1 / __builtin_sqrt(sum)) : T(0);
  }
};

// The same for a batch: problem b lies at b times the stride, 0 where all share it. What is null is as in `first`.
template <typename T>
struct DescentBatch {
  Descent<T> first;
  int64_t M_stride, Y_stride, columns;  // columns: of sums
  const T *lr, *momentum;               // [batch], like all that follow
  const int64_t* limit;                 // below 0: the problem is left alone
  const double *threshold, *bail, *made;
  int64_t* taken;  // the updates made

  __attribute__((always_inline)) inline bool runs(int64_t b) const { return !limit || limit[b] >= 0; }

  __attribute__((always_inline)) inline Descent<T> operator[](int64_t b) const {
    Descent<T> q = first;
    q.X += b * q.m * q.n, q.V += b * q.m * q.n, q.Y += b * Y_stride, q.sums += b * columns;
    if (q.S) q.S += b * q.m * q.n;
    if (q.R) q.R += b * q.m * q.p;
    q.known = q.R && q.sums[0] == q.sums[0];  // not NaN
    q.M += b * M_stride;
    if (lr) q.lr = lr[b];
    if (momentum) q.momentum = momentum[b];
    if (limit) q.limit = limit[b] < columns - 1 ? limit[b] : columns - 1;
    if (threshold) q.threshold = threshold[b];
    if (bail) q.bail = bail[b];
    if (made) q.made = made[b];
    return q;
  }
};

template <typename T>
struct Runners {  // both return the updates made; packed and workspace are aligned to 64 bytes
  int64_t (*lockstep)(const Descent<T>& problem, const T* packed, T* workspace);
  int64_t (*alone)(const Descent<T>& problem, int64_t slab, const T* packed, T* workspace);
};

template <typename T>
struct AdvanceKernels {
  int64_t (*slabs)(const Shape& shape);
  Rows (*rows)(const Shape& shape, int64_t slab);
  int64_t (*packed_elements)(const Shape& shape);
  int64_t (*workspace_elements)(const Shape& shape, int64_t buffers, bool alone);
  // one of `parts` parts; without `gradient` only what a residual takes
  void (*pack)(const T* M, const Shape& shape, T scale, T* packed, bool gradient, int64_t part, int64_t parts);
  Runners<T> heavy_ball, adam;
  // The heavy ball on the problems of a batch that the queue gives, a problem in each lane; writes `taken` too.
  int64_t (*lanes_elements)(int64_t m, int64_t n, int64_t p);
  void (*lanes)(const DescentBatch<T>& batch, Queue& queue, T* workspace);
};

}  // namespace mcf
