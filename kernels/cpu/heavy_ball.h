// Heavy ball in residual form: R = X M - Y;  G = c R M^T;  V = momentum V + G;  X = X - lr V.
//
// Rows of X do not talk to each other under mse and sse, so a problem is cut into slabs of rows, by its shape alone.
// Two ways to run it give the same bits: in lockstep one thread takes every slab through each iteration and stops
// exactly; alone, each slab makes all its iterations by itself, on any thread, and whoever called replays a problem
// that went past its stop. M is packed once for all of them, in both orientations, the second one scaled by c.
#pragma once

#include <cstdint>

namespace mcf {

template <typename T>
struct HeavyBall {  // one contiguous problem
  T *X, *V;         // [m, n], updated in place
  const T* Y;       // [m, p]
  int64_t m, n, p;
  T lr, momentum;
  bool unit;               // loss fro: c is 1 / ||R||, which couples the rows; in lockstep only
  int64_t limit;           // updates, at most
  double threshold, bail;  // in lockstep: stop at the first iterate with ||R||^2 <= threshold, or not <= bail
  double* sums;            // [limit + 1]: ||R||^2 of each iterate visited (of a slab alone: its share)
};

template <typename T>
struct HeavyBallKernels {
  int64_t (*slabs)(int64_t m, int64_t n, int64_t p);
  int64_t (*packed_elements)(int64_t n, int64_t p);
  int64_t (*workspace_elements)(int64_t rows, int64_t n, int64_t p);
  void (*pack)(const T* M, int64_t n, int64_t p, T scale, T* packed);
  // Both return the updates made. packed and workspace are aligned to 64 bytes.
  int64_t (*lockstep)(const HeavyBall<T>& problem, const T* packed, T* workspace);
  int64_t (*alone)(const HeavyBall<T>& problem, int64_t slab, const T* packed, T* workspace);
};

}  // namespace mcf
