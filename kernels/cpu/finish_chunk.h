// Judgement after a chunk of iterations; contract in matconv_fast/_reference.py, finish_chunk.
#pragma once

#include <cstdint>

namespace mcf {

struct FinishChunk {
  int64_t batch, columns;
  const double* sums;
  const int64_t* taken;
  const double* threshold;
  const double* Y_squares;
  double *bail, *last, *best;
  int64_t *updates, *status, *again, *counts;
};

void finish_chunk(const FinishChunk& q);

}  // namespace mcf
