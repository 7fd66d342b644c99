#include "finish_chunk.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "contract.h"

namespace mcf {
namespace {

Status judge(double sum, double threshold, double bail) {
  if (sum <= threshold) return kStatusConverged;
  if (sum <= bail) return kStatusRunning;
  return std::isnan(sum) ? kStatusNonfinite : kStatusDiverged;
}

}  // namespace

Counts finish_chunk(const FinishChunk& q, int64_t begin, int64_t end) {
  Counts counts = {0, -1};
  for (int64_t b = begin; b < end; ++b) {
    q.replay_to[b] = -1;
    if (q.status[b] != kStatusRunning) continue;
    const double* sums = q.sums + b * q.columns;
    const bool starts = std::isnan(q.bail[b]);
    if (starts) q.bail[b] = kBailFactor * (sums[0] > q.Y_squares[b] ? sums[0] : q.Y_squares[b]);
    if (starts && std::isnan(sums[0])) q.bail[b] = sums[0];

    // 3 ns an iterate, half of what calls of fmin took. Every comparison with a NaN is false, so a NaN ends the loop
    // and is never the lowest.
    const double threshold = q.threshold[b], bail = q.bail[b];
    double lowest = std::numeric_limits<double>::infinity();
    int64_t stop = 0;
    for (;; ++stop) {
      lowest = sums[stop] < lowest ? sums[stop] : lowest;
      if (stop == q.steps_done[b] || sums[stop] <= threshold || !(sums[stop] <= bail)) break;
    }
    Status code = judge(sums[stop], threshold, bail);
    if (starts && !std::isfinite(sums[0])) code = kStatusNonfinite;
    if (stop < q.steps_done[b]) q.replay_to[b] = stop;
    q.last[b] = sums[stop];
    q.best[b] = std::fmin(q.best[b], lowest);
    q.updates[b] += stop;
    q.status[b] = code;
    counts.running += code == kStatusRunning;
    counts.longest = std::max(counts.longest, q.replay_to[b]);
  }
  return counts;
}

}  // namespace mcf
