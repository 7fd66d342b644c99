// The iterations of a problem, slab of rows by slab, and how a problem is cut into slabs.
#pragma once

#include "advance_blocks.h"
#include "advance_rows.h"
#include "advance_small.h"
#include "advance_tiny.h"

namespace mcf {
namespace MCF_ISA {

// Approximate rows of a slab. Each iteration of a slab reads all of M from the cache that holds it: the further away
// that cache is, the more rows must share a read; but the X of one block stays in the first cache up to some 256
// columns. And a slab must amortize its partial sum of each iteration.
constexpr int64_t target_rows(const Shape& f, int64_t itemsize) {
  const int64_t bytes = 2 * f.n * f.p * itemsize, amortized = 8192 / (f.n * f.p);
  const int64_t share = bytes <= (1 << 20) ? 16 : bytes <= (6 << 20) ? 32 : 96;
  return amortized > share ? amortized : share;
}

// An even number of slabs is a fair share for two threads, so few rows are cut in two where that repays waking a
// thread: 64 of them on M 64 x 32,768 then take 0.6 of the time (Zen 3).
template <class S>
int64_t slabs(const Shape& f) {
  if (f.m < 16 || f.m * f.n * f.p < 16 * 16 * 16) return 1;
  const int64_t most = parts_of(f.m, S::least_rows(f));
  const int64_t count = round_up(parts_of(f.m, target_rows(f, sizeof(typename S::Element))), 2);
  return count < most ? count : most;
}

template <class S>
Rows rows_of(const Shape& f, int64_t slab) {
  const int64_t least = S::least_rows(f);
  const Rows units = part_of(parts_of(f.m, least), slabs<S>(f), slab);
  const int64_t end = units.end * least;
  return {units.begin * least, end < f.m ? end : f.m};
}

// Elements of the largest slab's state, in whole cache lines.
template <class S>
int64_t state_elements(const Shape& f, int states) {
  const int64_t least = S::least_rows(f), rows = parts_of(parts_of(f.m, least), slabs<S>(f)) * least;
  return round_up(S::elements(rows, f.n, f.p, states), 64 / sizeof(typename S::Element));
}

template <class S>
int64_t workspace_elements(const Shape& f, int states, bool one_slab) {
  return state_elements<S>(f, states) * (one_slab ? 1 : slabs<S>(f));
}

// Problems that `tiny` and `small` take hold their own copies, and a packed M.
inline int64_t no_packed(const Shape&) { return 0; }
inline int64_t no_workspace(const Shape&, int, bool) { return 0; }
template <typename T>
void no_pack(const T*, const Shape&, T, T*, bool, int64_t, int64_t) {}
inline int64_t one_slab(const Shape&) { return 1; }
inline Rows all_rows(const Shape& f, int64_t) { return {0, f.m}; }

template <typename T, class S>
constexpr SlabLayout<T> layout() {
  return {slabs<S>, rows_of<S>, S::packed_elements, workspace_elements<S>, S::pack};
}

// Every slab through each iteration.
template <typename T, class S, class Rule>
int64_t iterate_whole(const Descent<T>& q, const T* packed, T* work) {
  const int64_t count = slabs<S>(q), pitch = state_elements<S>(q, Rule::states);
  const auto rows = [&](int64_t i) { return rows_of<S>(q, i); };
  const auto state = [&](int64_t i) { return S(rows(i).count(), q.n, q.p, Rule::states, work + i * pitch); };
  for (int64_t i = 0; i < count; ++i) state(i).load(q, rows(i));
  Rule rule = {};
  begin_run(rule, q);
  int64_t j = 0;
  for (;; ++j) {
    if (j == q.limit && !q.last_sum) break;
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += residual_slab(state(i), q, packed);
    if (q.ends(j, sum)) break;
    if (q.coupled) {
      const T scale = q.over_norm(sum);
      for (int64_t i = 0; i < count; ++i) {
        const S s = state(i);
        for (int64_t k = 0; k < s.residuals(); ++k) s.r[k] *= scale;
      }
    }
    begin_step(rule, q, j);
    for (int64_t i = 0; i < count; ++i) update_slab(state(i), q, packed, rule);
  }
  for (int64_t i = 0; i < count; ++i) state(i).store(q, rows(i));
  return j;
}

// `limit` iterations of one slab; stops are the caller's.
template <typename T, class S, class Rule>
int64_t iterate_slab(const Descent<T>& q, int64_t slab, const T* packed, T* work) {
  const Rows rows = rows_of<S>(q, slab);
  const S s(rows.count(), q.n, q.p, Rule::states, work);
  s.load(q, rows);
  if (q.R_is_current) s.load_residual(q, rows);
  Rule rule = {};
  begin_run(rule, q);
  for (int64_t j = 0; j < q.limit; ++j) {
    if (j > 0 || !q.R_is_current) q.sums[j] = residual_slab(s, q, packed);
    begin_step(rule, q, j);
    update_slab(s, q, packed, rule);
  }
  if (q.last_sum && !(q.R_is_current && q.limit == 0)) q.sums[q.limit] = residual_slab(s, q, packed);
  if (q.R) s.store_residual(q, rows);
  s.store(q, rows);
  return q.limit;
}

template <typename T, class Rule>
int64_t small_whole(const Descent<T>& q, const T*, T*) {
  const int64_t count = slabs<BlockState<T>>(q);
  Rows parts[kSmallSlabs] = {};
  for (int64_t i = 0; i < count; ++i) parts[i] = rows_of<BlockState<T>>(q, i);
  return small_of_size<T, Rule>(q, parts, count);
}

template <typename T, class Rule>
int64_t small_slab(const Descent<T>& q, int64_t slab, const T*, T*) {
  const Rows rows = rows_of<BlockState<T>>(q, slab);
  Descent<T> through = q;
  through.stops = false;
  return small_of_size<T, Rule>(through, &rows, 1);
}

}  // namespace MCF_ISA
}  // namespace mcf
