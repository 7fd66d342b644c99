// Judgement after a chunk of iterations; contract in matconv_fast/_reference.py, finish_chunk.
#pragma once

#include <cstdint>

namespace mcf {

struct FinishChunk {
  int64_t columns;
  const double* sums;
  const int64_t* taken;
  const double* threshold;
  const double* Y_squares;
  double *bail, *last, *best;
  int64_t *updates, *status, *again;
};

struct Counts {
  int64_t running, longest;  // problems that go on, and the largest of `again`
};

// Of problems [begin, end).
Counts finish_chunk(const FinishChunk& q, int64_t begin, int64_t end);

}  // namespace mcf
