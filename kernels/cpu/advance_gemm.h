// Algorithm `gemm`: torch's GEMM for the products of a large problem, and one sweep after each for the rest.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "bindings.h"

namespace mcf {

// The tensors of a batch that torch multiplies, of two or three dimensions.
struct GemmTensors {
  const Tensor &X, &first_state;
  const std::optional<Tensor>&M, &R;

  static Tensor of_problem(const Tensor& t, int64_t b) {
    return t.dim() == 2 ? t : torch::stable::select(t, 0, t.size(0) == 1 ? 0 : b);
  }
};

// Calls f(first element, elements) for blocks, and adds up what it returns.
template <typename F>
double sum_over_elements(int64_t elements, const F& f) {
  return sum_of_blocks(parts_of(elements, kSweep),
                       [&](int64_t i) { return f(i * kSweep, std::min(kSweep, elements - i * kSweep)); });
}

// Iterates problem b; returns the updates made.
template <typename T>
int64_t iterate_gemm(const Descent<T>& q, const RuleKernels<T>& rule, const GemmTensors& tensors, int64_t b) {
  const Tensor X = tensors.of_problem(tensors.X, b), M = tensors.of_problem(*tensors.M, b);
  const Tensor Mt = torch::stable::transpose(M, 0, 1);
  const Tensor R = tensors.R.has_value() ? tensors.of_problem(*tensors.R, b) : torch::stable::new_empty(X, {q.m, q.p});
  const Tensor G =
      rule.accumulates ? tensors.of_problem(tensors.first_state, b) : torch::stable::new_empty(X, {q.m, q.n});
  const double decay = rule.decay(q);
  for (int64_t j = 0;; ++j) {
    if (j == q.limit && !q.last_sum) return j;
    if (j > 0 || !q.R_is_current) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(R.get(), X.get(), M.get()));
      q.sums[j] = sum_over_elements(q.m * q.p, [&](int64_t k, int64_t count) {
        return typed_kernels(T()).sweep.residual(write<T>(R) + k, q.Y + k, count);
      });
    }
    const double sum = q.sums[j];
    if (q.ends(j, sum)) return j;
    const T scale = q.coupled ? q.over_norm(sum) : q.scale;
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(G.get(), G.get(), R.get(), Mt.get(), decay, scale));
    sum_over_elements(q.m * q.n, [&](int64_t k, int64_t count) {
      rule.sweep(q, j, rule.accumulates ? nullptr : read<T>(G), k, count);
      return 0.0;
    });
  }
}

}  // namespace mcf
