// The parallel algorithms: the threads share the slabs of each problem, and each slab makes a segment of iterations by
// itself. After a segment the slabs' sums are added; a problem that overshot its stop is restored to the start of the
// segment and replayed up to the stop, so that it stops exactly.
#pragma once

#include <cstring>
#include <vector>

#include "bindings.h"

namespace mcf {

template <typename T>
class ParallelSlabs {
 public:
  // `packs` holds M packed for every problem, `packed` elements each, or once for all where that is 0.
  ParallelSlabs(const DescentBatch<T>& batch, const RuleKernels<T>& rule, const SlabLayout<T>& layout,
                const SlabRunner<T>& runner, const T* packs, int64_t packed)
      : batch_(batch),
        states_(rule.states),
        layout_(layout),
        runner_(runner),
        packs_(packs),
        packed_(packed),
        problems_(batch.size) {
    for (int64_t b = 0; b < size_; ++b) {
      if (!batch.runs(b)) continue;
      const Descent<T> q = batch[b];
      problems_[b].runs = true, problems_[b].R_is_current = q.R_is_current;
      longest_ = std::max(longest_, q.limit);
      may_stop_ |= q.stops && q.threshold > 0;
    }
    capacity_ = std::min(longest_, std::max<int64_t>(8, kSums / std::max<int64_t>(1, size_ * slabs_)));
  }

  void run() {
    if (longest_ < 0) return;
    Workspace<double> partial(size_ * slabs_ * (capacity_ + 1));
    Workspace<T> snapshot(batch_.first.stops && longest_ > 0 ? size_ * (1 + states_) * m_ * n_ : 0);
    Workspace<T> residuals(!batch_.first.R && longest_ > capacity_ ? size_ * m_ * p_ : 0);
    partial_ = partial.get(), snapshot_ = snapshot.get();
    if (residuals.get()) batch_.first.R = residuals.get();

    bool more = true;
    for (int64_t done = 0, steps; more; done += steps) {
      steps = segment_steps(done);
      for_slabs(steps, [&](int64_t b, int64_t slab, T* work) {
        if (!problems_[b].runs) return;
        for_matrices(b, slab, [](T* now, T* kept, size_t bytes) { std::memcpy(kept, now, bytes); });
        runner_.slab(segment(b, slab, done, steps), slab, packs_ + b * packed_, work);
      });
      more = false;
      bool replays = false;
      for (int64_t b = 0; b < size_; ++b) {
        problems_[b].replay_to = -1;
        if (problems_[b].runs) judge(b, done, steps);
        more |= problems_[b].runs, replays |= problems_[b].replay_to >= 0;
      }
      if (!replays) continue;
      for_slabs(steps, [&](int64_t b, int64_t slab, T* work) {
        if (problems_[b].replay_to < 0) return;
        for_matrices(b, slab, [](T* now, T* kept, size_t bytes) { std::memcpy(now, kept, bytes); });
        Descent<T> q = segment(b, slab, done, problems_[b].replay_to);
        q.R_is_current = q.last_sum = false, q.R = nullptr;
        runner_.slab(q, slab, packs_ + b * packed_, work);
      });
    }
  }

  int64_t steps_done(int64_t b) const { return problems_[b].steps_done; }

 private:
  static constexpr int64_t kSums = 4 << 20;  // of all slabs together in a segment: 32 MB

  struct Problem {
    bool runs = false;          // there are updates to make
    bool R_is_current = false;  // the R that was passed in is that of the first iterate
    int64_t steps_done = 0;
    int64_t replay_to = -1;  // updates of the last segment to replay, where it overshot the stop; otherwise -1
  };

  // A segment takes some 0.1 ms at first, so that waking the threads and copying X and the states cost little beside
  // it, and then as long as all segments before it, up to 1 ms. Where no tolerance is above 0 a stop is rare, and a
  // segment is as long as possible.
  int64_t segment_steps(int64_t done) const {
    if (!may_stop_) return capacity_;
    const double rate = 5e4 * static_cast<double>(threads());  // operations in a microsecond
    const int64_t first = std::max<int64_t>(8, 100 * rate / work_), most = std::max<int64_t>(64, 1000 * rate / work_);
    return std::min(capacity_, std::max(first, std::min(done, most)));
  }

  // The next `steps` updates of a slab, after `done` of them.
  Descent<T> segment(int64_t b, int64_t slab, int64_t done, int64_t steps) const {
    Descent<T> q = batch_[b];
    q.limit = std::min(steps, q.limit - done), q.step += done;
    q.R_is_current = done > 0 ? q.R != nullptr : problems_[b].R_is_current;
    q.sums = partial_ + (b * slabs_ + slab) * (capacity_ + 1);
    return q;
  }

  // Adds up the sums of the last segment and finds where the problem stops.
  void judge(int64_t b, int64_t done, int64_t steps) {
    Problem& problem = problems_[b];
    const Descent<T> q = segment(b, 0, done, steps);
    double* sums = batch_[b].sums + done;
    bool stops = false;
    int64_t j = 0;
    for (; j < q.limit + q.last_sum; ++j) {
      if (j > 0 || !q.R_is_current) {
        sums[j] = 0;
        for (int64_t slab = 0; slab < slabs_; ++slab) sums[j] += q.sums[slab * (capacity_ + 1) + j];
      }
      stops = q.stops_at(sums[j]);
      if (stops) break;
    }
    problem.steps_done = done + std::min(j, q.limit);
    problem.replay_to = stops && j < q.limit ? j : -1;
    problem.runs = !stops && problem.steps_done < batch_[b].limit;
  }

  // Calls f(problem, slab, workspace) for every slab, on all threads where there is enough work.
  template <typename F>
  void for_slabs(int64_t steps, const F& f) const {
    const int64_t items = size_ * slabs_;
    const int64_t grain = static_cast<int64_t>(std::fmax(1.0, kWaking * items / ((steps + 1) * work_)));
    share(items, grain, [&](Queue& queue) {
      const FlushDenormals flush;
      Workspace<T> work(layout_.workspace_elements(batch_.first, states_, true));
      for (int64_t i; (i = queue.next()) < items;) f(i / slabs_, i % slabs_, work.get());
    });
  }

  // Calls f(rows, where the snapshot keeps them, bytes) for a slab's rows of X and of each state.
  template <typename F>
  void for_matrices(int64_t b, int64_t slab, const F& f) const {
    if (!snapshot_) return;
    const Descent<T> q = batch_[b];
    const Rows rows = layout_.rows(batch_.first, slab);
    T* kept = snapshot_ + b * (1 + states_) * m_ * n_ + rows.begin * n_;
    for (int k = -1; k < states_; ++k, kept += m_ * n_)
      f((k < 0 ? q.X : q.state[k]) + rows.begin * n_, kept, rows.count() * n_ * sizeof(T));
  }

  DescentBatch<T> batch_;
  const int states_;
  const SlabLayout<T>& layout_;
  const SlabRunner<T>& runner_;
  const T* const packs_;
  const int64_t packed_;
  std::vector<Problem> problems_;
  const int64_t size_ = batch_.size, m_ = batch_.first.m, n_ = batch_.first.n, p_ = batch_.first.p;
  const int64_t slabs_ = layout_.slabs(batch_.first);
  const double work_ =
      size_ * (4.0 * m_ * n_ * (batch_.first.product ? p_ : 1) + 10.0 * m_ * n_ + 100);  // an iteration
  int64_t longest_ = -1, capacity_ = 0;  // updates of the longest problem; most updates of a segment
  bool may_stop_ = false;
  double* partial_ = nullptr;
  T* snapshot_ = nullptr;
};

}  // namespace mcf
