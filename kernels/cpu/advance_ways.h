// The ways in which `advance` runs a batch, on torch's threads. In all of them a problem stops exactly where it should.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "advance_stretches.h"

namespace mcf {

enum Way : int64_t { kLockstep, kAlone, kLanes, kGemm };  // the order of WAYS in matconv_fast/kernels/cpu/launch.py

template <typename T>
struct Advance {
  const Tensor &X, &V;
  const std::optional<Tensor>& M;
  DescentBatch<T> batch;
  Runners<T> runners;
  int64_t size, buffers;  // problems; and the solver's matrices in a workspace
  const std::optional<Tensor>& R;
  const AdvanceKernels<T>& kernels = typed_kernels(T()).advance;
  const SweepKernels<T>& sweep = typed_kernels(T()).sweep;
  const int64_t m = batch.first.m, n = batch.first.n, p = batch.first.p;
  const bool shared = batch.M_stride == 0;
  // whole cache lines, so that each of several begins on one
  const int64_t packed = batch.first.product ? round_up(kernels.packed_elements(batch.first)) : 0;

  void run(int64_t way) const {
    for (int64_t b = 0; batch.taken && b < size; ++b)
      if (!batch.runs(b)) batch.taken[b] = 0;
    if (way == kLockstep) lockstep();
    if (way == kAlone) alone();
    if (way == kLanes) lanes();
    if (way == kGemm)
      for (int64_t b = 0; b < size; ++b) finish(b, batch.runs(b) ? gemm(b) : 0);
  }

  void pack(int64_t b, T* out, bool gradient = true, int64_t part = 0, int64_t parts = 1) const {
    if (batch.first.product) kernels.pack(batch[b].M, batch.first, batch.first.scale, out, gradient, part, parts);
  }

  void finish(int64_t b, int64_t updates) const {
    if (batch.taken && batch.runs(b)) batch.taken[b] = updates;
  }

  // Problems that repay waking a thread.
  int64_t grain() const {
    const double work = (4.0 * m * n * p + 10.0 * m * n) * batch.columns + 1000;
    return static_cast<int64_t>(std::fmax(1.0, kWaking / work));
  }

  // One thread a problem.
  void lockstep() const {
    Workspace<T> common(shared ? packed : 0);
    if (shared && size) pack(0, common.get());
    share(size, grain(), [&](Queue& queue) {
      const FlushDenormals flush;
      Workspace<T> own(shared ? 0 : packed), state(kernels.workspace_elements(batch.first, buffers, false));
      for (int64_t b; (b = queue.take()) < size;) {
        int64_t updates = 0;
        if (batch.runs(b)) {
          if (!shared) pack(b, own.get());
          updates = runners.lockstep(batch[b], shared ? common.get() : own.get(), state.get());
        }
        finish(b, updates);
      }
    });
  }

  // Each slab of rows iterates by itself, on any thread.
  void alone() const {
    const int64_t matrices = shared ? std::min<int64_t>(size, 1) : size;
    Workspace<T> packs(matrices * packed);
    // all threads pack, which first touches the memory, too; a look at X, which makes no update, takes half of it
    bool updates = !batch.limit;
    for (int64_t b = 0; batch.limit && b < size; ++b) updates |= batch.limit[b] > 0;
    const int64_t parts = matrices * packed > kSweep ? 4 * static_cast<int64_t>(torch::stable::get_num_threads()) : 1;
    torch::stable::parallel_for(0, matrices * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pack(i / parts, packs.get() + i / parts * packed, updates, i % parts, parts);
    });
    Stretches<T> stretches(batch, size, buffers, kernels, runners, packs.get(), shared ? 0 : packed);
    stretches.run();
    for (int64_t b = 0; b < size; ++b) finish(b, stretches.updates(b));
  }

  // Many small problems, one in each lane of a vector.
  void lanes() const {
    share(size, grain(), [&](Queue& queue) {
      const FlushDenormals flush;
      Workspace<T> state(kernels.lanes_elements(m, n, p));
      kernels.lanes(batch, queue, state.get());
    });
  }

  // One large problem: torch's GEMM for the products, one sweep after each for the rest.
  int64_t gemm(int64_t b) const {
    const Descent<T> q = batch[b];
    const auto one = [&](const Tensor& t) { return torch::stable::select(t, 0, t.size(0) == 1 ? 0 : b); };
    const Tensor x = one(X), v = one(V), a = one(*M), a_t = torch::stable::transpose(a, 0, 1);
    const Tensor r = R.has_value() ? torch::stable::select(*R, 0, b) : torch::stable::new_empty(X, {m, p});
    const Tensor g = q.S ? torch::stable::new_empty(X, {m, n}) : v;
    for (int64_t j = 0;; ++j) {
      if (j == q.limit && !q.last_sum) return j;
      if (j > 0 || !q.known) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(r.get(), x.get(), a.get()));
        q.sums[j] =
            sum_over(m * p, [&](int64_t k, int64_t count) { return sweep.residual(write<T>(r) + k, q.Y + k, count); });
      }
      const double sum = q.sums[j];
      if (q.ends(j, sum)) return j;
      const T scale = q.unit ? q.over_norm(sum) : q.scale;
      TORCH_ERROR_CODE_CHECK(
          aoti_torch_cpu_addmm_out(g.get(), g.get(), r.get(), a_t.get(), q.S ? 0 : q.momentum, scale));
      sum_over(m * n, [&](int64_t k, int64_t count) {
        if (q.S)
          sweep.adam(q, j, q.X + k, q.V + k, q.S + k, read<T>(g) + k, count);
        else
          sweep.descend(q.X + k, q.V + k, q.lr, count);
        return 0.0;
      });
    }
  }

  // Calls f(first element, elements) for blocks, and adds up what it returns.
  template <typename F>
  static double sum_over(int64_t elements, const F& f) {
    return sum_of_blocks((elements + kSweep - 1) / kSweep,
                         [&](int64_t i) { return f(i * kSweep, std::min(kSweep, elements - i * kSweep)); });
  }

  static int64_t round_up(int64_t elements) {
    const int64_t line = 64 / sizeof(T);
    return (elements + line - 1) / line * line;
  }
};

}  // namespace mcf
