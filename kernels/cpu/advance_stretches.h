// Slabs of rows that iterate alone, and yet stop exactly: each makes a stretch of iterations by itself, then their sums
// are added, and a problem that went past its stop is run again from where the stretch began.
#pragma once

#include <cstring>
#include <vector>

#include "bindings.h"

namespace mcf {

template <typename T>
class Stretches {
 public:
  // `packs` holds M packed for every problem, `packed` elements each, or once for all where that is 0.
  Stretches(const DescentBatch<T>& batch, int64_t size, int64_t buffers, const AdvanceKernels<T>& kernels,
            const Runners<T>& runners, const T* packs, int64_t packed)
      : batch_(batch),
        size_(size),
        buffers_(buffers),
        kernels_(kernels),
        runners_(runners),
        packs_(packs),
        packed_(packed),
        problems_(size) {
    for (int64_t b = 0; b < size; ++b) {
      if (!batch.runs(b)) continue;
      const Descent<T> q = batch[b];
      problems_[b].runs = true, problems_[b].known = q.known;
      longest_ = std::max(longest_, q.limit);
      may_stop_ |= q.stops && q.threshold > 0;
    }
    room_ = std::min(longest_, std::max<int64_t>(8, kSums / std::max<int64_t>(1, size * slabs_)));
  }

  void run() {
    if (longest_ < 0) return;
    Workspace<double> partial(size_ * slabs_ * (room_ + 1));
    Workspace<T> before(batch_.first.stops && longest_ > 0 ? size_ * kStates * m_ * n_ : 0);
    Workspace<T> residuals(!batch_.first.R && longest_ > room_ ? size_ * m_ * p_ : 0);
    partial_ = partial.get(), before_ = before.get();
    if (residuals.get()) batch_.first.R = residuals.get();

    bool more = true;
    for (int64_t made = 0, steps; more; made += steps) {
      steps = stretch(made);
      for_slabs(steps, [&](int64_t b, int64_t slab, T* state) {
        if (!problems_[b].runs) return;
        for_states(b, slab, [](T* now, T* kept, size_t bytes) { std::memcpy(kept, now, bytes); });
        runners_.alone(piece(b, slab, made, steps), slab, packs_ + b * packed_, state);
      });
      more = false;
      bool past = false;
      for (int64_t b = 0; b < size_; ++b) {
        problems_[b].again = -1;
        if (problems_[b].runs) judge(b, made, steps);
        more |= problems_[b].runs, past |= problems_[b].again >= 0;
      }
      if (!past) continue;
      for_slabs(steps, [&](int64_t b, int64_t slab, T* state) {
        if (problems_[b].again < 0) return;
        for_states(b, slab, [](T* now, T* kept, size_t bytes) { std::memcpy(now, kept, bytes); });
        Descent<T> q = piece(b, slab, made, problems_[b].again);
        q.known = q.last_sum = false, q.R = nullptr;
        runners_.alone(q, slab, packs_ + b * packed_, state);
      });
    }
  }

  int64_t updates(int64_t b) const { return problems_[b].updates; }

 private:
  static constexpr int64_t kStates = 3;      // X, V and S
  static constexpr int64_t kSums = 4 << 20;  // of all slabs together in a stretch: 32 MB

  struct Problem {
    bool runs = false;    // there are updates to make
    bool known = false;   // the R that came is that of the first iterate
    int64_t updates = 0;  // made so far
    int64_t again = -1;   // to make again of the last stretch, which went past the stop; -1: it did not
  };

  // A stretch takes some 0.1 ms at first, so that waking the threads and copying X and V are little beside it, and then
  // as long as all before it, up to 1 ms. Where no tolerance is above 0 a stop is too rare to look out for.
  int64_t stretch(int64_t made) const {
    if (!may_stop_) return room_;
    const double rate = 5e4 * static_cast<double>(torch::stable::get_num_threads());  // operations in a microsecond
    const int64_t first = std::max<int64_t>(8, 100 * rate / work_), most = std::max<int64_t>(64, 1000 * rate / work_);
    return std::min(room_, std::max(first, std::min(made, most)));
  }

  // A slab of a problem, or where that is null its sums, `made` updates from the start.
  Descent<T> piece(int64_t b, int64_t slab, int64_t made, int64_t steps) const {
    Descent<T> q = batch_[b];
    q.limit = std::min(steps, q.limit - made), q.made += made;
    q.known = made > 0 ? q.R != nullptr : problems_[b].known;
    q.sums = partial_ + (b * slabs_ + slab) * (room_ + 1);
    return q;
  }

  // Adds up the sums of the last stretch, and sees how far the problem goes.
  void judge(int64_t b, int64_t made, int64_t steps) {
    Problem& problem = problems_[b];
    const Descent<T> q = piece(b, 0, made, steps);
    double* sums = batch_[b].sums + made;
    bool stops = false;
    int64_t j = 0;
    for (; j < q.limit + q.last_sum; ++j) {
      if (j > 0 || !q.known) {
        sums[j] = 0;
        for (int64_t slab = 0; slab < slabs_; ++slab) sums[j] += q.sums[slab * (room_ + 1) + j];
      }
      stops = q.stops_at(sums[j]);
      if (stops) break;
    }
    problem.updates = made + std::min(j, q.limit);
    problem.again = stops && j < q.limit ? j : -1;
    problem.runs = !stops && problem.updates < batch_[b].limit;
  }

  // Calls f(problem, slab, workspace) for every slab, on all threads where there are operations enough.
  template <typename F>
  void for_slabs(int64_t steps, const F& f) const {
    const int64_t items = size_ * slabs_;
    const int64_t grain = static_cast<int64_t>(std::fmax(1.0, kWaking * items / ((steps + 1) * work_)));
    share(items, grain, [&](Queue& queue) {
      const FlushDenormals flush;
      Workspace<T> state(kernels_.workspace_elements(batch_.first, buffers_, true));
      for (int64_t i; (i = queue.take()) < items;) f(i / slabs_, i % slabs_, state.get());
    });
  }

  // Calls f(where they are, where they are kept, bytes) for the rows of a slab in X, V and S.
  template <typename F>
  void for_states(int64_t b, int64_t slab, const F& f) const {
    if (!before_) return;
    const Descent<T> q = batch_[b];
    const Rows rows = kernels_.rows(batch_.first, slab);
    T* kept = before_ + b * kStates * m_ * n_ + rows.begin * n_;
    for (T* state : {q.X, q.V, q.S}) {
      if (state) f(state + rows.begin * n_, kept, rows.count() * n_ * sizeof(T));
      kept += m_ * n_;
    }
  }

  DescentBatch<T> batch_;
  const int64_t size_, buffers_;
  const AdvanceKernels<T>& kernels_;
  const Runners<T>& runners_;
  const T* const packs_;
  const int64_t packed_;
  std::vector<Problem> problems_;
  const int64_t m_ = batch_.first.m, n_ = batch_.first.n, p_ = batch_.first.p, slabs_ = kernels_.slabs(batch_.first);
  const double work_ =
      size_ * (4.0 * m_ * n_ * (batch_.first.product ? p_ : 1) + 10.0 * m_ * n_ + 100);  // an iteration
  int64_t longest_ = -1, room_ = 0;
  bool may_stop_ = false;
  double* partial_ = nullptr;
  T* before_ = nullptr;
};

}  // namespace mcf
