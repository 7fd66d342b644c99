#include "finish_chunk.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mcf {
namespace {

// The codes of matconv_fast/_reference.py.
enum Code : int64_t { kRunning = -1, kConverged = 0, kDiverged = 2, kNonFinite = 4 };
constexpr double kBailFactor = 1e16;

Code judge(double sum, double threshold, double bail) {
  if (sum <= threshold) return kConverged;
  if (sum <= bail) return kRunning;
  return std::isnan(sum) ? kNonFinite : kDiverged;
}

}  // namespace

void finish_chunk(const FinishChunk& q) {
  int64_t running = 0, longest = -1;
  for (int64_t b = 0; b < q.batch; ++b) {
    q.again[b] = -1;
    if (q.status[b] != kRunning) continue;
    const double* sums = q.sums + b * q.columns;
    const bool starts = std::isnan(q.bail[b]);
    if (starts) q.bail[b] = kBailFactor * (sums[0] > q.Y_squares[b] ? sums[0] : q.Y_squares[b]);
    if (starts && std::isnan(sums[0])) q.bail[b] = sums[0];

    // 3 ns an iterate, half of what calls of fmin took: every comparison with a NaN is false, so that it ends the loop
    // and is never the lowest
    const double threshold = q.threshold[b], bail = q.bail[b];
    double lowest = std::numeric_limits<double>::infinity();
    int64_t end = 0;
    for (;; ++end) {
      lowest = sums[end] < lowest ? sums[end] : lowest;
      if (end == q.taken[b] || sums[end] <= threshold || !(sums[end] <= bail)) break;
    }
    Code code = judge(sums[end], threshold, bail);
    if (starts && !std::isfinite(sums[0])) code = kNonFinite;
    if (end < q.taken[b]) q.again[b] = end;
    q.last[b] = sums[end];
    q.best[b] = std::fmin(q.best[b], lowest);
    q.updates[b] += end;
    q.status[b] = code;
    running += code == kRunning;
    longest = std::max(longest, q.again[b]);
  }
  q.counts[0] = running;
  q.counts[1] = longest;
}

}  // namespace mcf
