// `direct_solve`: X M = Y for square M by elimination. Contract: matconv_fast/_reference/direct.py.
#include <tuple>

#include "bindings.h"

namespace mcf {
namespace {

constexpr const char* kOp = "direct_solve";

template <typename T>
int64_t run_direct(const DirectBatch<T>& batch) {
  const DirectKernels<T>& kernels = typed_kernels(T()).direct;
  const bool lanes = batch.n <= kMostInLanes;
  const DirectKernel<T>& kernel = lanes ? kernels.lanes : kernels.rows;
  const double n = static_cast<double>(batch.n), m = static_cast<double>(batch.m);
  const int64_t group = lanes ? kDirectGroup : 1, items = parts_of(batch.size, group);
  const double work = static_cast<double>(group) * (n * n * n + 3 * n * n * m + 100);
  int64_t open = 0;
  share(items, static_cast<int64_t>(std::fmax(1.0, kWaking / work)), [&](Queue& queue) {
    Workspace<double> memory(kernel.workspace_elements(batch.n));
    __atomic_fetch_add(&open, kernel.solve(batch, queue, memory.get()), __ATOMIC_RELAXED);
  });
  return open;
}

typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> Solved;

Solved direct_solve(const Tensor& any_M, const std::optional<Tensor>& any_Y, double rtol, double atol, int64_t loss) {
  const Tensor M = readable(any_M);
  const std::optional<Tensor> Y = readable(any_Y);
  const auto is_batch = [&](const Tensor& t) {
    return t.is_cpu() && t.dim() == 3 && dtype_code(t) == dtype_code(M) && t.size(2) == M.size(2);
  };
  const bool fits =
      is_batch(M) && M.size(1) == M.size(2) && M.size(1) <= kMostDirect &&
      (!Y.has_value() || (is_batch(*Y) && (Y->size(0) == M.size(0) || Y->size(0) == 1 || M.size(0) == 1)));
  STD_TORCH_CHECK(fits, kOp, ": the CPU kernel takes M [B, n, n] and Y [B, m, n] of one dtype, n up to ", kMostDirect,
                  "; got ", describe("M", M), ", ", describe("Y", Y));
  const int64_t n = M.size(1), m = Y.has_value() ? Y->size(1) : n;
  const int64_t size = Y.has_value() && M.size(0) == 1 ? Y->size(0) : M.size(0);
  const auto made = [&](const Tensor& like, std::initializer_list<int64_t> shape) {
    return empty_like(like, shape.begin(), shape.size());
  };
  const Tensor X = made(M, {size, m, n}), losses = made(M, {size, 2});
  const Tensor squares = torch::stable::new_empty(M, {size}, ScalarType::Double);
  const Tensor status = torch::stable::new_empty(M, {size}, ScalarType::Long);
  const Tensor open = torch::stable::new_empty(M, {}, ScalarType::Long);
  with_dtype(M.scalar_type(), kOp, [&](auto zero) {
    typedef decltype(zero) T;
    const double floor =
        sizeof(T) == 4 ? kFloorUnits * std::numeric_limits<T>::epsilon() * std::sqrt(static_cast<double>(n)) : 0.0;
    const DirectBatch<T> batch = {size,
                                  m,
                                  n,
                                  read<T>(M),
                                  Y.has_value() ? read<T>(*Y) : nullptr,
                                  M.size(0) == 1 ? 0 : n * n,
                                  !Y.has_value() || Y->size(0) == 1 ? 0 : m * n,
                                  {rtol, atol, floor, kFloorShare,
                                   loss == kLossFro   ? 0.0
                                   : loss == kLossSse ? 1.0
                                                      : 1 / std::fmax(1, m * n)},
                                  write<T>(X),
                                  write<T>(losses),
                                  write<double>(squares),
                                  write<int64_t>(status)};
    *write<int64_t>(open) = run_direct(batch);
  });
  return {X, losses, squares, status, open};
}

}  // namespace
}  // namespace mcf

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) { m.impl("direct_solve", TORCH_BOX(&mcf::direct_solve)); }
