// `distance`: ||A - B|| in one pass. The strict operator raises for arguments that the kernel does not take;
// `try_distance` returns None.
#include "bindings.h"

namespace mcf {
namespace {

// A and B: [m, n] or [batch, m, n] with contiguous rows; the distance of each problem, in their dtype.
template <typename T>
Tensor run_distance(const Tensor& A, const Tensor& B, int64_t ord) {
  const int64_t dim = A.dim(), batch = dim == 3 ? A.size(0) : 1, m = A.size(dim - 2), n = A.size(dim - 1);
  const int64_t A_row = A.stride(dim - 2), B_row = B.stride(dim - 2);
  const bool flat = m <= 1 || (A_row == n && B_row == n);
  const int64_t rows = flat ? 1 : m, columns = flat ? m * n : n;
  // Blocks of 32,768 elements, or of whole rows, depend on shape and layout alone, so the sum is independent of
  // threads.
  const int64_t group = rows_in_block(columns), row_blocks = parts_of(rows, group);
  const int64_t column_blocks = std::max<int64_t>(1, parts_of(columns, kSweep));
  const int64_t blocks = row_blocks * column_blocks;
  const DistanceKernels<T>& kernels = typed_kernels(T()).distance;
  const auto kernel = ord == kOrdFro ? kernels.squares : ord == kOrdMax ? kernels.largest : kernels.absolute;
  const auto combine = [&](double a, double b) { return ord != kOrdMax ? a + b : a > b || a != a ? a : b; };

  const Tensor result = empty_values(A, dim == 3, batch);
  double few[64];
  Workspace<double> many(batch * blocks > 64 ? batch * blocks : 0);
  double* partial = batch * blocks > 64 ? many.get() : few;
  const auto run_blocks = [&](Queue& queue) {
    for (int64_t item; (item = queue.next()) < queue.size;) {
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
    write<T>(result)[b] = static_cast<T>(ord == kOrdFro ? std::sqrt(value) : value);
  }
  return result;
}

// None for arguments that the kernel does not take. Python checks them only then: its checks take longer than a small
// distance.
std::optional<Tensor> try_distance(const Tensor& any_A, const Tensor& any_B, int64_t ord) {
  const int64_t dim = any_A.dim();
  const ScalarType dtype = any_A.scalar_type();
  if ((dim != 2 && dim != 3) || any_B.dim() != dim || !any_A.is_cpu() || !any_B.is_cpu() ||
      dtype_code(any_B) != dtype_code(any_A) || (dtype != ScalarType::Float && dtype != ScalarType::Double) ||
      ord < kOrdFro || ord > kOrd1)
    return std::nullopt;
  for (int64_t d = 0; d < dim; ++d)
    if (any_A.size(d) != any_B.size(d)) return std::nullopt;
  const auto lies_along = [&](const Tensor& t, int64_t d) { return t.stride(d) == 1 || t.size(d) <= 1; };
  const bool rows = lies_along(any_A, dim - 1) && lies_along(any_B, dim - 1);
  const bool columns =
      !rows && lies_along(any_A, dim - 2) && lies_along(any_B, dim - 2);  // every norm is that of the transposes
  const auto laid_out = [&](const Tensor& t) {
    if (columns) return torch::stable::transpose(t, dim - 2, dim - 1);
    return lies_along(t, dim - 1) ? t : torch::stable::contiguous(t);
  };
  const Tensor A = laid_out(any_A), B = laid_out(any_B);
  return dtype == ScalarType::Float ? run_distance<float>(A, B, ord) : run_distance<double>(A, B, ord);
}

Tensor distance(const Tensor& A, const Tensor& B, int64_t ord) {
  const std::optional<Tensor> value = try_distance(A, B, ord);
  STD_TORCH_CHECK(value.has_value(),
                  "distance: the CPU kernel takes A and B of one shape [m, n] or [B, m, n] in float32 or float64; got ",
                  describe("A", A), ", ", describe("B", B), ", ord ", ord);
  return *value;
}

}  // namespace
}  // namespace mcf

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) {
  m.impl("try_distance", TORCH_BOX(&mcf::try_distance));
  m.impl("distance", TORCH_BOX(&mcf::distance));
}
