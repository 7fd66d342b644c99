// `advance` on problems of any size, slab of rows by slab. See advance.h.
#pragma once

#include "advance_blocks.h"
#include "advance_rows.h"
#include "advance_small.h"
#include "advance_tiny.h"

namespace mcf {
namespace MCF_ISA {

// Whether rows stay in their places: where there are so few that vectors along them would be mostly padding, no product
// that would read them, or one alone.
template <typename T>
constexpr bool by_rows(const Shape& f) {
  return f.m <= Simd<T>::lanes || !f.product || f.once;
}

// Rows of a slab, about. Each iteration of a slab reads all of M, from the cache that holds it: the further away that
// is, the more rows have to share a read; but one block's X stays in the first cache up to some 256 columns. And an
// iteration of a slab must be worth the sum that it is recorded by.
template <typename T>
constexpr int64_t target_rows(const Shape& f) {
  const int64_t bytes = 2 * f.n * f.p * static_cast<int64_t>(sizeof(T)), worth = 8192 / (f.n * f.p);
  const int64_t share = bytes <= (1 << 20) ? 16 : bytes <= (6 << 20) ? 32 : 96;
  return worth > share ? worth : share;
}

// A slab begins with a whole block, or where there is but one with its second vector.
template <typename T>
constexpr int64_t least_rows(const Shape& f) {
  return by_rows<T>(f) ? 1 : f.m <= 2 * Simd<T>::lanes ? Simd<T>::lanes : 2 * Simd<T>::lanes;
}

// An even number is shared fairly by two threads, so few rows are cut in two where that repays waking one: 64 of them
// on M 64 x 32,768 take 0.6 times as long so (Zen 3).
template <typename T>
int64_t slabs(const Shape& f) {
  if (f.m < 16 || f.m * f.n * f.p < 16 * 16 * 16) return 1;
  const int64_t most = parts_of(f.m, least_rows<T>(f)), count = round_up(parts_of(f.m, target_rows<T>(f)), 2);
  return count < most ? count : most;
}

template <typename T>
Rows rows_of(const Shape& f, int64_t slab) {
  const int64_t least = least_rows<T>(f);
  const Rows units = part_of(parts_of(f.m, least), slabs<T>(f), slab);
  const int64_t end = units.end * least;
  return {units.begin * least, end < f.m ? end : f.m};
}

template <typename T>
MCF_INLINE bool is_tiny(const Descent<T>& q) {
  return q.product && q.m <= 4 && q.n <= 4 && q.p <= 4 && !q.unit;
}

// What the state of the largest slab takes, in whole cache lines.
template <typename T>
int64_t state_elements(const Shape& f, int64_t buffers) {
  const int64_t least = least_rows<T>(f), rows = parts_of(parts_of(f.m, least), slabs<T>(f)) * least;
  const int64_t elements =
      by_rows<T>(f) ? RowState<T>::elements(rows, f.n, f.p, buffers) : BlockState<T>::elements(rows, f.n, f.p, buffers);
  return round_up(elements, 64 / sizeof(T));
}

// Of one slab alone, or of all in lockstep.
template <typename T>
int64_t workspace_elements(const Shape& f, int64_t buffers, bool alone) {
  return state_elements<T>(f, buffers) * (alone ? 1 : slabs<T>(f));
}

template <typename T>
int64_t packed_elements(const Shape& f) {
  return by_rows<T>(f) ? panels_elements<T>(f.n, f.p) : 2 * f.n * f.p;
}

template <typename T>
void pack_both(const T* M, const Shape& f, T scale, T* packed, bool gradient, int64_t part, int64_t parts) {
  const auto pack = by_rows<T>(f) ? pack_panels<T> : pack_groups<T>;
  pack(M, f.n, f.p, scale, packed, gradient, part, parts);
}

// S is the state of a slab.
template <typename T, class Rule, class S>
int64_t lockstep_in(const Descent<T>& q, const T* packed, T* work) {
  const int64_t count = slabs<T>(q), pitch = state_elements<T>(q, Rule::buffers);
  const auto rows = [&](int64_t i) { return rows_of<T>(q, i); };
  const auto state = [&](int64_t i) { return S(rows(i).count(), q.n, q.p, work + i * pitch); };
  for (int64_t i = 0; i < count; ++i) load(state(i), q, rows(i), Rule::buffers);
  Rule rule(q);
  int64_t j = 0;
  for (;; ++j) {
    if (j == q.limit && !q.last_sum) break;
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += residual_slab(state(i), q, packed);
    if (q.ends(j, sum)) break;
    if (q.unit) {
      const T scale = q.over_norm(sum);
      for (int64_t i = 0; i < count; ++i) {
        const S s = state(i);
        for (int64_t k = 0; k < s.residuals(); ++k) s.r[k] *= scale;
      }
    }
    rule.begin(j);
    for (int64_t i = 0; i < count; ++i) update_slab(state(i), q, packed, rule);
  }
  for (int64_t i = 0; i < count; ++i) store(state(i), q, rows(i), Rule::buffers);
  return j;
}

template <typename T, class Rule>
int64_t lockstep(const Descent<T>& q, const T* packed, T* work) {
  if constexpr (Rule::buffers == 1) {
    if (is_tiny(q)) return tiny(q);
    if (is_small(q)) {
      const int64_t count = slabs<T>(q);
      Rows parts[kSmallSlabs] = {};
      for (int64_t i = 0; i < count; ++i) parts[i] = rows_of<T>(q, i);
      return small_of_size(q, parts, count);
    }
  }
  return by_rows<T>(q) ? lockstep_in<T, Rule, RowState<T>>(q, packed, work)
                       : lockstep_in<T, Rule, BlockState<T>>(q, packed, work);
}

template <typename T, class Rule, class S>
int64_t alone_in(const Descent<T>& q, Rows rows, const T* packed, T* work) {
  const S s(rows.count(), q.n, q.p, work);
  load(s, q, rows, Rule::buffers);
  if (q.known) load_residual(s, q, rows);
  Rule rule(q);
  for (int64_t j = 0; j < q.limit; ++j) {
    if (j > 0 || !q.known) q.sums[j] = residual_slab(s, q, packed);
    rule.begin(j);
    update_slab(s, q, packed, rule);
  }
  if (q.last_sum && !(q.known && q.limit == 0)) q.sums[q.limit] = residual_slab(s, q, packed);
  if (q.R) store_residual(s, q, rows);
  store(s, q, rows, Rule::buffers);
  return q.limit;
}

template <typename T, class Rule>
int64_t alone(const Descent<T>& q, int64_t slab, const T* packed, T* work) {
  Descent<T> through = q;
  through.stops = false;
  if (slabs<T>(q) == 1) return lockstep<T, Rule>(through, packed, work);
  const Rows rows = rows_of<T>(q, slab);
  if constexpr (Rule::buffers == 1)
    if (is_small(q)) return small_of_size(through, &rows, 1);
  return by_rows<T>(q) ? alone_in<T, Rule, RowState<T>>(q, rows, packed, work)
                       : alone_in<T, Rule, BlockState<T>>(q, rows, packed, work);
}

template <typename T, class Rule>
constexpr Runners<T> runners() {
  return {lockstep<T, Rule>, alone<T, Rule>};
}

}  // namespace MCF_ISA
}  // namespace mcf
