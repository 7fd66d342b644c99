// The algorithms of `advance` on a CPU, what each can run, and the choice of the fastest one.
#pragma once

#include <algorithm>
#include <cstring>

#include "advance.h"

namespace mcf {

// The order of SlabAlgorithm, then its parallel members, then the others.
enum class Algorithm {
  kTiny,           // the whole problem in registers
  kSmall,          // sizes known to the compiler
  kRows,           // slabs of row-major rows, one thread a problem
  kBlocks,         // slabs of blocks of rows, one thread a problem
  kParallelSmall,  // the threads share the slabs of each problem, likewise
  kParallelRows,
  kParallelBlocks,
  kLanes,  // one problem in each lane of a vector
  kGemm,   // torch's GEMM for the products and one sweep after each
};

struct AlgorithmInfo {
  const char* name;
  bool keeps_residual;  // it can continue from the residual that the last call ended with
  int least_steps;      // updates that repay the fixed cost of a call
};

// A call of a parallel algorithm packs M and copies the state of each slab, at 1,024 square a fifth of an iteration.
constexpr AlgorithmInfo kAlgorithms[] = {
    {"tiny", false, 1},
    {"small", false, 1},
    {"rows", false, 1},
    {"blocks", false, 1},
    {"parallel_small", false, 16},
    {"parallel_rows", true, 16},
    {"parallel_blocks", true, 16},
    {"lanes", false, 1},
    {"gemm", true, 1},
};

inline bool is_parallel(Algorithm a) { return a >= Algorithm::kParallelSmall && a <= Algorithm::kParallelBlocks; }

inline SlabAlgorithm slab_algorithm(Algorithm a) {
  const int first = static_cast<int>(is_parallel(a) ? Algorithm::kParallelSmall : Algorithm::kSmall);
  return static_cast<SlabAlgorithm>(static_cast<int>(a) - first + kSmallSlab);
}

// Finds an algorithm by its name; whether there is one.
inline bool find_algorithm(const char* name, Algorithm& found) {
  for (const AlgorithmInfo& info : kAlgorithms)
    if (std::strcmp(name, info.name) == 0) {
      found = static_cast<Algorithm>(&info - kAlgorithms);
      return true;
    }
  return false;
}

inline bool is_tiny(const Shape& f) {
  return f.product && !f.coupled && f.m <= kTinySize && f.n <= kTinySize && f.p <= kTinySize;
}
inline bool is_small(const Shape& f) {
  return f.product && f.m <= kSmallRows && f.n <= kSmallColumns && f.p <= kSmallColumns;
}

// What an algorithm needs that a problem of this shape lacks, or null.
inline const char* unmet_need(Algorithm a, const Shape& f) {
  if (a == Algorithm::kTiny && !is_tiny(f)) return "an M, m, n and p up to 4, and a loss other than fro";
  if (is_parallel(a) && f.coupled) return "a loss other than fro, which couples the rows";
  if ((a == Algorithm::kSmall || a == Algorithm::kParallelSmall) && !is_small(f))
    return "an M, m up to 24, and n and p up to 16";
  if (!f.product && a != Algorithm::kRows && a != Algorithm::kParallelRows) return "an M";
  return nullptr;
}

// What the choice depends on besides the shape.
struct Machine {
  int vector_bytes, itemsize, threads;
  int lanes() const { return vector_bytes / itemsize; }
};

// Up to this size a problem takes less time in a lane than by itself: at 5, 8, 12, 14 and 16 square 17, 44, 118, 180
// and 253 ns an iteration in lanes, 53, 54, 177, 217 and 222 ns by itself (float32, one run on one Zen 3 core).
constexpr int64_t kLanesSize = 14;

// Elements of M from which torch's GEMM is faster. With AVX2 the slabs are ahead up to 2,048 square, the largest
// measured (31.6 against 34.6 ms an iteration at 1,024, 235 against 267 at 2,048), but keep two packed copies of M.
// With AVX-512, where MKL is at its best, it is an estimate from the prototype, which drew level with MKL at 256; the
// generic one is a guess. Below some 32 rows a product waits for M, and the slabs are ahead (1.6 times at 16 rows, M
// 1,024 square).
constexpr int64_t gemm_area(int vector_bytes) {
  return vector_bytes == 64 ? 768 * 768 : vector_bytes == 32 ? 4096 * 4096 : 128 * 128;
}
constexpr int64_t kGemmRows = 32;

// Products m n p from which a thread is worth waking, and from which torch's GEMM is under loss fro.
constexpr int64_t kParallelWork = 16 * 16 * 16, kCoupledGemmWork = 64 * 64 * 64;

// The fastest algorithm for many updates of `batch` problems.
inline Algorithm choose_algorithm(const Shape& f, int64_t batch, const Machine& machine) {
  if (f.product && std::max({f.m, f.n, f.p}) <= kLanesSize && batch >= 2 * machine.lanes()) return Algorithm::kLanes;
  const int64_t work = f.product ? f.m * f.n * f.p : 8 * f.m * f.n;
  const bool few = batch < machine.threads && f.m >= 16 && work >= kParallelWork;
  if (f.product && f.m >= kGemmRows &&
      (f.n * f.p >= gemm_area(machine.vector_bytes) || (f.coupled && few && work >= kCoupledGemmWork)))
    return Algorithm::kGemm;
  const bool parallel = few && !f.coupled;
  if (is_tiny(f)) return Algorithm::kTiny;
  if (is_small(f)) return parallel ? Algorithm::kParallelSmall : Algorithm::kSmall;
  // where there are so few rows that vectors along them would be mostly padding, or no product that would read them
  if (f.m <= machine.lanes() || !f.product) return parallel ? Algorithm::kParallelRows : Algorithm::kRows;
  return parallel ? Algorithm::kParallelBlocks : Algorithm::kBlocks;
}

// Up to so many products m n p, one use of M on one thread takes less time than torch's GEMM: loss, loss with gradients
// and step take 38, 77 and 37 us at 80 square, and 48, 82 and 65 us at 81 with the GEMM (two Zen 3 cores).
constexpr int64_t kSmallProduct = 80 * 80 * 80;

// Elements of a matrix from which the threads share a single pass over it.
constexpr int64_t kSharedPass = 1 << 15;

// The fastest algorithm for one update of `batch` problems. No change of layout pays.
inline Algorithm choose_step_algorithm(const Shape& f, int64_t batch, const Machine& machine) {
  const bool few = batch < machine.threads;
  if (f.product && few && f.m * f.n * f.p > kSmallProduct) return Algorithm::kGemm;
  if (!f.product && few && !f.coupled && f.m * f.p > kSharedPass) return Algorithm::kParallelRows;
  return is_tiny(f) ? Algorithm::kTiny : is_small(f) ? Algorithm::kSmall : Algorithm::kRows;
}

}  // namespace mcf
