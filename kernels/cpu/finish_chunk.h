// Where each problem of a chunk stops, and how it stands. Contract: matconv_fast/_reference.py, finish_chunk.
#pragma once

#include <cstdint>

namespace mcf {

struct FinishChunk {
  int64_t columns;
  const double* sums;
  const int64_t* steps_done;
  const double* threshold;
  const double* Y_squares;
  double *bail, *last, *best;
  int64_t *updates, *status, *replay_to;
};

struct Counts {
  int64_t running, longest;  // problems that continue, and the largest of `replay_to`
};

// Of problems [begin, end).
Counts finish_chunk(const FinishChunk& q, int64_t begin, int64_t end);

}  // namespace mcf
