// X M = Y for square M [n, n], by Gauss elimination with partial pivoting, and a verdict on the X found by its residual
// in float64. Contract: matconv_fast/_reference/direct.py.
#pragma once

#include <cstdint>

#include "advance.h"
#include "contract.h"

namespace mcf {

constexpr int64_t kMostInLanes = 16;  // n
constexpr int64_t kMostDirect = 128;
constexpr int64_t kDirectGroup = 64;  // problems in lanes that a thread takes at a time

// When a problem is solved, by ||R|| and ||Y||, and its loss.
struct DirectCriteria {
  double rtol, atol;    // tolerance of ||R||
  double floor, share;  // STAGNATED where ||R|| <= floor (||X|| ||M|| + ||Y||) and ||R|| <= share ||Y||
  double factor;        // the loss is factor * ||R||^2, or ||R|| where the factor is 0

  __attribute__((always_inline)) inline double loss_of(double square) const {
    return factor > 0 ? factor * square : __builtin_sqrt(square);
  }
  // ||R||^2 up to which a problem has converged; -1 where X = 0 is an answer, or where squares lose too much.
  __attribute__((always_inline)) inline double threshold(double Y_squares) const {
    const double relative = rtol * __builtin_sqrt(Y_squares), tolerance = relative < atol ? atol : relative;
    const double square = tolerance * tolerance;
    return Y_squares > 1e-200 && Y_squares < 1e200 && Y_squares > square ? square : -1;
  }
};

template <typename T>
struct DirectBatch {
  int64_t size, m, n;
  const T *M, *Y;              // [n, n], [m, n]; Y is null for the identity
  int64_t M_stride, Y_stride;  // from one problem to the next; 0 where all problems share it
  DirectCriteria criteria;
  T* X;             // [size, m, n]
  T* losses;        // [size, 2]: of X = 0, and of X
  double* squares;  // [size]: ||R||^2
  int64_t* status;  // [size]

  static double norm(const T* t, int64_t count) {
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += static_cast<double>(t[k]) * static_cast<double>(t[k]);
    return __builtin_sqrt(sum);
  }

  __attribute__((always_inline)) inline void record(int64_t b, T loss_of_Y, double R_squares, int64_t code) const {
    losses[2 * b] = loss_of_Y, losses[2 * b + 1] = static_cast<T>(criteria.loss_of(R_squares));
    squares[b] = R_squares, status[b] = code;
  }

  // Records how problem b ended; returns 1 where it has no answer yet.
  int64_t judge(int64_t b, double Y_squares, double R_squares) const {
    const double threshold = criteria.threshold(Y_squares);
    const int64_t code = R_squares <= threshold                                ? kStatusConverged
                         : threshold >= 0 && at_floor(b, Y_squares, R_squares) ? kStatusStagnated
                                                                               : kStatusRunning;
    record(b, static_cast<T>(criteria.loss_of(Y_squares)), R_squares, code);
    return code == kStatusRunning;
  }

  bool at_floor(int64_t b, double Y_squares, double R_squares) const {
    const double y = __builtin_sqrt(Y_squares), r = __builtin_sqrt(R_squares);
    if (!(criteria.floor > 0 && r <= criteria.share * y)) return false;
    return r <= criteria.floor * (norm(X + b * m * n, m * n) * norm(M + b * M_stride, n * n) + y);
  }
};

template <typename T>
struct DirectKernel {
  int64_t (*workspace_elements)(int64_t n);
  // Solves the problems that the queue gives; returns how many have no answer.
  int64_t (*solve)(const DirectBatch<T>& batch, Queue& queue, double* workspace);
};

template <typename T>
struct DirectKernels {
  DirectKernel<T> lanes;  // the queue counts groups of kDirectGroup problems
  DirectKernel<T> rows;   // the queue counts problems
};

}  // namespace mcf
