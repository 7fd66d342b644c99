// Runs `advance` on a batch by the chosen algorithm, on torch's threads.
#pragma once

#include "advance_gemm.h"
#include "choose_algorithm.h"
#include "parallel_slabs.h"

namespace mcf {

template <typename T>
class Advance {
 public:
  Advance(const DescentBatch<T>& batch, const RuleKernels<T>& rule, Algorithm algorithm)
      : batch_(batch),
        rule_(rule),
        algorithm_(algorithm),
        on_slabs_(algorithm != Algorithm::kLanes && algorithm != Algorithm::kGemm),
        slab_(on_slabs_ ? slab_algorithm(algorithm) : kRowSlab) {}

  void run(const GemmTensors& tensors) const {
    for (int64_t b = 0; batch_.trace.steps_done && b < batch_.size; ++b)
      if (!batch_.runs(b)) batch_.trace.steps_done[b] = 0;
    if (algorithm_ == Algorithm::kLanes) {
      lanes();
    } else if (algorithm_ == Algorithm::kGemm) {
      for (int64_t b = 0; b < batch_.size; ++b)
        if (batch_.runs(b)) record(b, iterate_gemm(batch_[b], rule_, tensors, b));
    } else if (is_parallel(algorithm_)) {
      parallel();
    } else {
      whole();
    }
  }

 private:
  void pack(int64_t b, T* out, bool gradient = true, int64_t part = 0, int64_t parts = 1) const {
    if (packed_) layout_.pack(batch_[b].M, batch_.first, batch_.first.scale, out, gradient, part, parts);
  }

  void record(int64_t b, int64_t steps) const {
    if (batch_.trace.steps_done && batch_.runs(b)) batch_.trace.steps_done[b] = steps;
  }

  // Problems that repay waking a thread.
  int64_t grain() const {
    const Shape& f = batch_.first;
    const double work = (4.0 * f.m * f.n * f.p + 10.0 * f.m * f.n) * batch_.trace.columns + 1000;
    return static_cast<int64_t>(std::fmax(1.0, kWaking / work));
  }

  // One thread a problem.
  void whole() const {
    const SlabRunner<T>& runner = rule_.slabs[slab_];
    Workspace<T> common(shared_ ? packed_ : 0);
    if (shared_ && batch_.size) pack(0, common.get());
    share(batch_.size, grain(), [&](Queue& queue) {
      const FlushDenormals flush;
      Workspace<T> own(shared_ ? 0 : packed_), work(layout_.workspace_elements(batch_.first, rule_.states, false));
      for (int64_t b; (b = queue.next()) < batch_.size;) {
        if (!batch_.runs(b)) continue;
        if (!shared_) pack(b, own.get());
        record(b, runner.whole(batch_[b], shared_ ? common.get() : own.get(), work.get()));
      }
    });
  }

  // The threads share the slabs.
  void parallel() const {
    const int64_t matrices = shared_ ? std::min<int64_t>(batch_.size, 1) : batch_.size;
    Workspace<T> packs(matrices * packed_);
    // All threads pack, which also touches the memory first. A call that makes no update needs half of the packed M.
    bool updates = !batch_.criteria.limit;
    for (int64_t b = 0; !updates && b < batch_.size; ++b) updates = batch_.criteria.limit[b] > 0;
    const int64_t parts = matrices * packed_ > kSweep ? 4 * threads() : 1;
    torch::stable::parallel_for(0, matrices * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pack(i / parts, packs.get() + i / parts * packed_, updates, i % parts, parts);
    });
    ParallelSlabs<T> slabs(batch_, rule_, layout_, rule_.slabs[slab_], packs.get(), shared_ ? 0 : packed_);
    slabs.run();
    for (int64_t b = 0; b < batch_.size; ++b) record(b, slabs.steps_done(b));
  }

  void lanes() const {
    share(batch_.size, grain(), [&](Queue& queue) {
      const FlushDenormals flush;
      Workspace<T> work(kernels_.lanes_elements(batch_.first, rule_.states));
      rule_.lanes(batch_, queue, work.get());
    });
  }

  static int64_t whole_lines(int64_t elements) {
    const int64_t line = 64 / sizeof(T);
    return parts_of(elements, line) * line;
  }

  const DescentBatch<T>& batch_;
  const RuleKernels<T>& rule_;
  const Algorithm algorithm_;
  const bool on_slabs_;
  const SlabAlgorithm slab_;
  const AdvanceKernels<T>& kernels_ = typed_kernels(T()).advance;
  const SlabLayout<T>& layout_ = kernels_.layouts[slab_];
  const bool shared_ = batch_.M_stride == 0;
  // whole cache lines, so that each of several begins on one
  const int64_t packed_ = on_slabs_ && batch_.first.product ? whole_lines(layout_.packed_elements(batch_.first)) : 0;
};

}  // namespace mcf
