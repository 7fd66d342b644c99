// Operators of the CPU extension, against libtorch's stable ABI: one build serves every torch from 2.10 on.
// Schemas live in matconv_fast/_ops; this file picks the instruction set, and holds distance.
#include "bindings.h"

#include <cstdlib>
#include <cstring>

namespace mcf {
namespace {

// The best instruction set that the processor has, no better than MATCONV_FAST_ISA where that is set.
const Kernels& select_kernels() {
#if defined(__x86_64__)
  const char* cap = std::getenv("MATCONV_FAST_ISA");
  const bool capped = cap && *cap;
  const bool avx512 = !capped || std::strcmp(cap, "avx512") == 0;
  const bool avx2 = avx512 || std::strcmp(cap, "avx2") == 0;
  if (avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return avx512_kernels();
  if (avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_kernels();
#endif
  return generic_kernels();
}

}  // namespace

const Kernels& active_kernels() {
  static const Kernels& kernels = select_kernels();
  return kernels;
}

namespace {

enum Ord : int64_t { kFrobenius, kMax, kOne };  // the order of ORDS in matconv_fast/_reference.py

// A and B: [m, n] or [batch, m, n] with contiguous rows; the distance of each problem, in their dtype.
template <typename T>
Tensor run_distance(const Tensor& A, const Tensor& B, int64_t ord) {
  const int64_t dim = A.dim(), batch = dim == 3 ? A.size(0) : 1, m = A.size(dim - 2), n = A.size(dim - 1);
  const int64_t A_row = A.stride(dim - 2), B_row = B.stride(dim - 2);
  const bool flat = m <= 1 || (A_row == n && B_row == n);
  const int64_t rows = flat ? 1 : m, columns = flat ? m * n : n;
  // Blocks depend on shape and layout alone, so the sum does not depend on the threads: 32,768 elements, or whole rows.
  const int64_t group = rows_in_block(columns), row_blocks = parts_of(rows, group);
  const int64_t column_blocks = std::max<int64_t>(1, parts_of(columns, kSweep));
  const int64_t blocks = row_blocks * column_blocks;
  const DistanceKernels<T>& kernels = typed_kernels(T()).distance;
  const auto kernel = ord == kFrobenius ? kernels.squares : ord == kMax ? kernels.largest : kernels.absolute;
  const auto combine = [&](double a, double b) { return ord != kMax ? a + b : a > b || a != a ? a : b; };

  const Tensor result = empty_values(A, dim == 3, batch);
  double few[64];
  Workspace<double> many(batch * blocks > 64 ? batch * blocks : 0);
  double* partial = batch * blocks > 64 ? many.get() : few;
  const auto run_blocks = [&](Queue& queue) {
    for (int64_t item; (item = queue.take()) < queue.size;) {
      const int64_t b = item / blocks, row0 = item % blocks / column_blocks * group;
      const int64_t column0 = item % column_blocks * kSweep;
      const T* a_base = read<T>(A) + (dim == 3 ? b * A.stride(0) : 0) + column0;
      const T* b_base = read<T>(B) + (dim == 3 ? b * B.stride(0) : 0) + column0;
      double value = 0;
      for (int64_t row = row0; row < std::min(rows, row0 + group); ++row)
        value = combine(value, kernel(a_base + row * A_row, b_base + row * B_row, std::min(kSweep, columns - column0)));
      partial[item] = value;
    }
  };
  share(batch * blocks, rows_in_block(m * n), run_blocks);
  for (int64_t b = 0; b < batch; ++b) {
    double value = 0;
    for (int64_t i = 0; i < blocks; ++i) value = combine(value, partial[b * blocks + i]);
    write<T>(result)[b] = static_cast<T>(ord == kFrobenius ? std::sqrt(value) : value);
  }
  return result;
}

// The distance; an undefined tensor for those that the kernel does not take: checks in Python would take longer than a
// small distance, so whoever called looks closer only then.
Tensor distance_op(const Tensor any_A, const Tensor any_B, int64_t ord) {
  const int64_t dim = any_A.dim();
  const ScalarType dtype = any_A.scalar_type();
  if ((dim != 2 && dim != 3) || any_B.dim() != dim || !any_A.is_cpu() || !any_B.is_cpu() ||
      any_B.scalar_type() != dtype || (dtype != ScalarType::Float && dtype != ScalarType::Double) || ord < kFrobenius ||
      ord > kOne)
    return Tensor();
  for (int64_t d = 0; d < dim; ++d)
    if (any_A.size(d) != any_B.size(d)) return Tensor();
  const auto lies_along = [&](const Tensor& t, int64_t d) { return t.stride(d) == 1 || t.size(d) <= 1; };
  const bool rows = lies_along(any_A, dim - 1) && lies_along(any_B, dim - 1);
  const bool columns = !rows && lies_along(any_A, dim - 2) && lies_along(any_B, dim - 2);  // no norm minds which
  const auto laid_out = [&](const Tensor& t) {
    if (columns) return torch::stable::transpose(t, dim - 2, dim - 1);
    return lies_along(t, dim - 1) ? t : torch::stable::contiguous(t);
  };
  const Tensor A = laid_out(any_A), B = laid_out(any_B);
  return dtype == ScalarType::Float ? run_distance<float>(A, B, ord) : run_distance<double>(A, B, ord);
}

}  // namespace
}  // namespace mcf

// Read by kernels/cpu/launch.py through ctypes.
extern "C" __attribute__((visibility("default"))) const char* matconv_fast_isa() { return mcf::active_kernels().name; }

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) { m.impl("distance", TORCH_BOX(&mcf::distance_op)); }
