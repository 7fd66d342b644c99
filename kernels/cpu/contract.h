// Written by tools/write_contract.py from kernels/contract.py. Do not edit.
#pragma once

#include <cstdint>

namespace mcf {

enum Loss : int64_t {
  kLossMse = 0,
  kLossSse = 1,
  kLossFro = 2,
};
enum Ord : int64_t {
  kOrdFro = 0,
  kOrdMax = 1,
  kOrd1 = 2,
};
enum Status : int64_t {
  kStatusRunning = -1,
  kStatusConverged = 0,
  kStatusMaxIterations = 1,
  kStatusDiverged = 2,
  kStatusStagnated = 3,
  kStatusNonfinite = 4,
  kStatusLeastSquares = 5,
  kStatusBreakdown = 6,
  kStatusStopped = 7,
};

constexpr double kBailFactor = 10000000000.0;
constexpr double kSmallestSquare = 2.3e-308;
constexpr double kFloorUnits = 16, kFloorShare = 0.1;

}  // namespace mcf
