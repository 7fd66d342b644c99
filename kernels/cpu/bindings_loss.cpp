// `residual_loss` and `residual_products`: the residual's sum of squares and its products with X and M, from which the
// loss and its gradients follow. The strict operators raise for arguments that the kernel does not take;
// `try_residual_loss` returns None.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstring>

#include "bindings.h"
#include "choose_algorithm.h"

namespace mcf {
namespace {

// Y, which may have a lower precision. It is as large as R, which is never materialized, so it is converted in pieces.
template <typename T>
struct Target {
  const void* data;
  ScalarType dtype;

  const T* read(int64_t begin, int64_t count, T* buffer) const {
    if (dtype == ScalarType::BFloat16) {
      const uint16_t* from = static_cast<const uint16_t*>(data) + begin;
      for (int64_t k = 0; k < count; ++k) buffer[k] = from_bits(static_cast<uint32_t>(from[k]) << 16);
      return buffer;
    }
    if (dtype == ScalarType::Half) {
      const uint16_t* from = static_cast<const uint16_t*>(data) + begin;
      for (int64_t k = 0; k < count; ++k) {
        // exponent and fraction move to their place in a float32, whose bias is 112 more; a denormal is n 2^-24
        const uint32_t sign = (from[k] & 0x8000u) << 16, rest = from[k] & 0x7fffu;
        const float small = static_cast<float>(rest) * 0x1p-24f;
        const float magnitude = rest < 0x400u ? small : from_bits((rest << 13) + (112u << 23));
        buffer[k] = rest >= 0x7c00u ? from_bits(sign | 0x7f800000u | rest << 13) : sign ? -magnitude : magnitude;
      }
      return buffer;
    }
    return static_cast<const T*>(data) + begin;
  }

 private:
  static float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

// One problem. A null output is not computed.
template <typename T>
struct Residual {
  const Tensor &X, &M;  // [m, n], [n, p]
  Target<T> Y;
  int64_t m, n, p;
  const Tensor *R_Mt, *Xt_R;  // [m, n], [n, p], outputs
  const Tensor* R;            // [m, p], output; if wanted, R is a single block
  const SweepKernels<T>& sweep = typed_kernels(T()).sweep;

  // R is made in blocks of whole columns or whole rows, along its longer side. Each block completes its part of one
  // product, X^T R or R M^T, and is a term of the other. 320 of F's 8,192 columns are 4 % of R; the three products take
  // 460 ms with blocks of 320, 506 of 256, 525 of 128, and 433 whole (two Zen 3 cores). A block of 1 MB stays in cache.
  double run() const {
    const Tensor Xt = torch::stable::transpose(X, 0, 1), Mt = torch::stable::transpose(M, 0, 1);
    const bool by_columns = p >= m;
    const int64_t length = by_columns ? p : m, other = by_columns ? m : p;
    const int64_t least = std::max<int64_t>(m * p * 5 / 128, (int64_t(1) << 20) / static_cast<int64_t>(sizeof(T)));
    const int64_t step = R ? length : std::min(length, std::max<int64_t>(64, least / std::max<int64_t>(other, 1)));
    double sum = 0;
    std::optional<Tensor> buffer;
    for (int64_t begin = 0; begin < length; begin += step) {
      const int64_t count = std::min(step, length - begin);
      const int64_t rows = by_columns ? m : count, columns = by_columns ? count : p;
      if (!buffer || buffer->size(by_columns ? 1 : 0) != count)
        buffer = R ? *R : torch::stable::new_empty(X, {rows, columns});
      const Tensor& r = *buffer;
      const auto part = [&](Tensor t, int64_t dim) { return torch::stable::narrow(t, dim, begin, count); };
      const Tensor x = by_columns ? X : part(X, 0), a = by_columns ? part(M, 1) : M;
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(r.get(), x.get(), a.get()));
      sum += subtract(r, by_columns ? 0 : begin, by_columns ? begin : 0);
      const bool first = begin == 0;
      if (R_Mt && by_columns)
        add_product(*R_Mt, r, part(Mt, 0), first);
      else if (R_Mt)
        add_product(part(*R_Mt, 0), r, Mt, true);
      if (Xt_R && by_columns)
        add_product(part(*Xt_R, 1), Xt, r, true);
      else if (Xt_R)
        add_product(*Xt_R, part(Xt, 1), r, first);
    }
    return sum;
  }

  static void add_product(const Tensor& out, const Tensor& A, const Tensor& B, bool first) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), A.get(), B.get(), first ? 0 : 1, 1));
  }

  // r -= the part of Y that begins at a row and a column; returns the sum of squares.
  double subtract(const Tensor& r, int64_t row, int64_t column) const {
    const int64_t rows = r.size(0), columns = r.size(1);
    const int64_t group = rows_in_block(columns);
    return sum_of_blocks((rows + group - 1) / group, [&](int64_t g) {
      constexpr int64_t piece = 1024;
      T buffer[piece];
      double sum = 0;
      for (int64_t i = g * group; i < std::min(rows, (g + 1) * group); ++i)
        for (int64_t j = 0; j < columns; j += piece) {
          const int64_t count = std::min(piece, columns - j);
          sum +=
              sweep.residual(write<T>(r) + i * columns + j, Y.read((row + i) * p + column + j, count, buffer), count);
        }
      return sum;
    });
  }
};

// The loss, and what is given of R M^T, X^T R and R. None, and nothing is written, for arguments that the kernel does
// not take.
std::optional<Tensor> try_products(const Tensor& any_X, const std::optional<Tensor>& any_M,
                                   const std::optional<Tensor>& any_Y, int64_t loss, const std::optional<Tensor>& R_Mt,
                                   const std::optional<Tensor>& Xt_R, const std::optional<Tensor>& R) {
  if (!any_X.is_cpu() || (any_M.has_value() && !any_M->is_cpu()) || (any_Y.has_value() && !any_Y->is_cpu()))
    return std::nullopt;
  const Tensor X = readable(any_X);
  const std::optional<Tensor> M = readable(any_M), Y = readable(any_Y);
  const int64_t dim = X.dim();
  const ScalarType dtype = X.scalar_type();
  if ((dim != 2 && dim != 3) || (dtype != ScalarType::Float && dtype != ScalarType::Double)) return std::nullopt;
  const int64_t size = dim == 3 ? X.size(0) : 1, m = X.size(dim - 2), n = X.size(dim - 1);
  if (M.has_value() && M->dim() != dim) return std::nullopt;
  const int64_t p = M.has_value() ? M->size(dim - 1) : n;
  const auto fits = [&](const Tensor& t, int64_t rows, int64_t columns) {
    return t.is_cpu() && t.is_contiguous() && t.dim() == dim && t.size(dim - 2) == rows && t.size(dim - 1) == columns &&
           (dim == 2 || t.size(0) == size);
  };
  const auto output_fits = [&](const std::optional<Tensor>& t, int64_t rows, int64_t columns) {
    return !t.has_value() || (fits(*t, rows, columns) && t->scalar_type() == dtype);
  };
  const ScalarType Y_dtype = Y.has_value() && dtype_code(*Y) != dtype_code(X) ? Y->scalar_type() : dtype;
  const bool low = Y_dtype == ScalarType::BFloat16 || Y_dtype == ScalarType::Half;
  if (!fits(X, m, n) || (M.has_value() && (!fits(*M, n, p) || dtype_code(*M) != dtype_code(X))) ||
      (Y.has_value() ? !fits(*Y, m, p) : m != p) || !(Y_dtype == dtype || (low && dtype == ScalarType::Float)) ||
      !output_fits(R_Mt, m, n) || !output_fits(Xt_R, n, p) || !output_fits(R, m, p) || loss < kLossMse ||
      loss > kLossFro)
    return std::nullopt;
  const Tensor result = empty_values(X, dim == 3, size);
  with_dtype(dtype, "residual_products", [&](auto zero) {
    using T = decltype(zero);
    const double elements = static_cast<double>(m) * p;
    Workspace<T> identity(Y.has_value() ? 0 : m * p);
    if (!Y.has_value()) fill_identity(identity.get(), m, p);
    const auto done = [&](int64_t b, double sum) {
      write<T>(result)[b] = static_cast<T>(loss_of(sum, loss, elements));
    };
    const auto target = [&](int64_t b) {
      if (!Y.has_value()) return Target<T>{identity.get(), dtype};
      const int64_t bytes = Y_dtype == dtype ? sizeof(T) : 2;
      return Target<T>{static_cast<const char*>(Y->data_ptr()) + b * m * p * bytes, Y_dtype};
    };
    if (M.has_value() && elements * n > kSmallProduct) {
      const auto one = [&](const Tensor& t, int64_t b) { return dim == 3 ? torch::stable::select(t, 0, b) : t; };
      for (int64_t b = 0; b < size; ++b) {
        const Tensor x = one(X, b), a = one(*M, b);
        std::optional<Tensor> outs[3];
        const std::optional<Tensor>* given[3] = {&R_Mt, &Xt_R, &R};
        for (int k = 0; k < 3; ++k)
          if (given[k]->has_value()) outs[k] = one(**given[k], b);
        const auto pointer = [&](int k) { return outs[k].has_value() ? &*outs[k] : nullptr; };
        done(b, Residual<T>{x, a, target(b), m, n, p, pointer(0), pointer(1), pointer(2)}.run());
      }
      return;
    }
    const LossKernels<T>& kernels = typed_kernels(T()).loss;
    const int64_t grain = static_cast<int64_t>(std::fmax(1.0, kWaking / (6 * elements * n + 10 * elements + 1000)));
    for_range(size, grain, [&](int64_t begin, int64_t end) {
      Workspace<T> work(kernels.workspace_elements(m, n, p)), converted(Y_dtype == dtype ? 0 : m * p);
      for (int64_t b = begin; b < end; ++b) {
        const auto output = [&](const std::optional<Tensor>& t, int64_t count) {
          return t.has_value() ? write<T>(*t) + b * count : nullptr;
        };
        done(b, kernels.residual({read<T>(X) + b * m * n, M.has_value() ? read<T>(*M) + b * n * p : nullptr,
                                  target(b).read(0, m * p, converted.get()), M.has_value(), m, n, p,
                                  output(R_Mt, m * n), output(Xt_R, n * p), output(R, m * p)},
                                 work.get()));
      }
    });
  });
  return result;
}

Tensor residual_products(const Tensor& X, const std::optional<Tensor>& M, const std::optional<Tensor>& Y, int64_t loss,
                         const std::optional<Tensor>& R_Mt, const std::optional<Tensor>& Xt_R,
                         const std::optional<Tensor>& R) {
  const std::optional<Tensor> value = try_products(X, M, Y, loss, R_Mt, Xt_R, R);
  STD_TORCH_CHECK(value.has_value(),
                  "residual_products: the CPU kernel takes X [m, n] or [B, m, n] in float32 or float64, and M, Y and "
                  "outputs that fit it; got ",
                  describe("X", X), ", ", describe("M", M), ", ", describe("Y", Y), ", ", describe("R_Mt", R_Mt), ", ",
                  describe("Xt_R", Xt_R), ", ", describe("R", R), ", loss ", loss);
  return *value;
}

std::optional<Tensor> try_residual_loss(const Tensor& X, const std::optional<Tensor>& M, const std::optional<Tensor>& Y,
                                        int64_t loss) {
  return try_products(X, M, Y, loss, std::nullopt, std::nullopt, std::nullopt);
}

Tensor residual_loss(const Tensor& X, const std::optional<Tensor>& M, const std::optional<Tensor>& Y, int64_t loss) {
  const std::optional<Tensor> value = try_residual_loss(X, M, Y, loss);
  STD_TORCH_CHECK(value.has_value(),
                  "residual_loss: the CPU kernel takes X [m, n] or [B, m, n] in float32 or float64, and M and Y that "
                  "fit it; got ",
                  describe("X", X), ", ", describe("M", M), ", ", describe("Y", Y), ", loss ", loss);
  return *value;
}

}  // namespace
}  // namespace mcf

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) {
  m.impl("try_residual_loss", TORCH_BOX(&mcf::try_residual_loss));
  m.impl("residual_loss", TORCH_BOX(&mcf::residual_loss));
  m.impl("residual_products", TORCH_BOX(&mcf::residual_products));
}
