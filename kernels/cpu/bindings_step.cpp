// `heavy_ball_step_`: one update in place. `try_heavy_ball_step_` returns None, and writes nothing, for arguments that
// the kernel does not take; the strict operator raises.
#include "run_advance.h"

namespace mcf {
namespace {

// Whether two tensors may share memory: whether the ranges from their first to their last elements meet.
bool overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto end = [](const Tensor& t) {
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return static_cast<const char*>(t.data_ptr()) + (last + 1) * t.element_size();
  };
  return static_cast<const char*>(a.data_ptr()) < end(b) && static_cast<const char*>(b.data_ptr()) < end(a);
}

// On the CPU, and no two elements share memory.
bool is_writable(const Tensor& t) {
  if (!t.is_cpu()) return false;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.stride(d) == 0 && t.size(d) > 1) return false;
  return true;
}

// M or Y as the kernels read it: contiguous, and float32 where it has a lower precision than X.
std::optional<Tensor> widened(const std::optional<Tensor>& t, const Tensor& X) {
  if (!t.has_value() || !t->is_cpu()) return t;
  if (dtype_code(*t) == dtype_code(X)) return readable(t);
  const bool low = t->scalar_type() == ScalarType::BFloat16 || t->scalar_type() == ScalarType::Half;
  return readable(low && X.scalar_type() == ScalarType::Float ? torch::stable::to(*t, ScalarType::Float) : t);
}

template <typename T>
Tensor step(const Tensor& X, const Tensor& V, const std::optional<Tensor>& M, const std::optional<Tensor>& Y, double lr,
            double momentum, int64_t loss) {
  const int64_t dim = X.dim(), size = dim == 3 ? X.size(0) : 1, m = X.size(dim - 2), n = X.size(dim - 1);
  const int64_t p = M.has_value() ? M->size(M->dim() - 1) : n;
  const double elements = static_cast<double>(m) * p, hyper[2] = {lr, momentum};
  Workspace<T> identity(Y.has_value() ? 0 : m * p);
  if (!Y.has_value()) fill_identity(identity.get(), m, p);
  double one_problem[2];
  Workspace<double> many(size > 1 ? 2 * size : 0);
  const auto is_batch = [](const std::optional<Tensor>& t) { return t.has_value() && t->dim() == 3 && t->size(0) > 1; };

  DescentBatch<T> batch = {};
  Descent<T>& q = batch.first;
  static_cast<Shape&>(q) = {m, n, p, M.has_value(), loss == kLossFro};
  q.X = write<T>(X), q.state[0] = write<T>(V), q.M = M.has_value() ? read<T>(*M) : nullptr;
  q.Y = Y.has_value() ? read<T>(*Y) : identity.get();
  q.hyper = {hyper, 1}, q.scale = static_cast<T>(gradient_scale(loss, elements)), q.limit = 1;
  batch.size = size, batch.M_stride = is_batch(M) ? n * p : 0, batch.Y_stride = is_batch(Y) ? m * p : 0;
  batch.trace = {size > 1 ? many.get() : one_problem, 2, nullptr};
  const Machine machine = {active_kernels().vector_bytes, sizeof(T), threads()};
  const RuleKernels<T>& rule = typed_kernels(T()).advance.rules[0];
  Advance<T>(batch, rule, choose_step_algorithm(q, size, machine)).run({X, V, M, std::nullopt});

  const Tensor result = empty_values(X, dim == 3, size);
  for (int64_t b = 0; b < size; ++b)
    write<T>(result)[b] = static_cast<T>(loss_of(batch.trace.sums[2 * b], loss, elements));
  return result;
}

// One update of X and V [m, n] or [batch, m, n]; returns the loss before it. A matrix without a batch dimension serves
// all problems. Python checks arguments only after None: its checks take longer than a small step.
std::optional<Tensor> try_heavy_ball_step_(const Tensor& any_X, const Tensor& any_V, const std::optional<Tensor>& any_M,
                                           const std::optional<Tensor>& any_Y, double lr, double momentum,
                                           int64_t loss) {
  const int64_t dim = any_X.dim();
  const ScalarType dtype = any_X.scalar_type();
  if ((dim != 2 && dim != 3) || (dtype != ScalarType::Float && dtype != ScalarType::Double) || loss < kLossMse ||
      loss > kLossFro || !is_writable(any_X) || !is_writable(any_V))
    return std::nullopt;
  if (any_M.has_value() && (any_M->dim() < 2 || (any_Y.has_value() && dtype_code(*any_Y) != dtype_code(*any_M))))
    return std::nullopt;
  Updated updated_X(any_X), updated_V(any_V);
  const Tensor &X = updated_X.get(), &V = updated_V.get();
  std::optional<Tensor> M = widened(any_M, X), Y = widened(any_Y, X);
  const int64_t size = dim == 3 ? X.size(0) : 1, m = X.size(dim - 2), n = X.size(dim - 1);
  const int64_t p = M.has_value() ? M->size(M->dim() - 1) : n;
  const auto fits = [&](const Tensor& t, int64_t rows, int64_t columns) {
    const int64_t d = t.dim();
    return t.is_cpu() && t.is_contiguous() && dtype_code(t) == dtype_code(X) && (d == 2 || (d == 3 && dim == 3)) &&
           t.size(d - 2) == rows && t.size(d - 1) == columns && (d == 2 || t.size(0) == 1 || t.size(0) == size);
  };
  if (!fits(X, m, n) || !fits(V, m, n) || V.dim() != dim || V.numel() != X.numel() ||
      (M.has_value() && !fits(*M, n, p)) || (Y.has_value() ? !fits(*Y, m, p) : m != p) || overlap(any_X, any_V))
    return std::nullopt;
  for (std::optional<Tensor>* t : {&M, &Y})  // a factor that shares memory with X or V is read before they are written
    if (t->has_value() && (overlap(X, **t) || overlap(V, **t))) *t = torch::stable::clone(**t);
  const Tensor result = dtype == ScalarType::Float ? step<float>(X, V, M, Y, lr, momentum, loss)
                                                   : step<double>(X, V, M, Y, lr, momentum, loss);
  updated_X.put_back();
  updated_V.put_back();
  return result;
}

Tensor heavy_ball_step_(const Tensor& X, const Tensor& V, const std::optional<Tensor>& M,
                        const std::optional<Tensor>& Y, double lr, double momentum, int64_t loss) {
  const std::optional<Tensor> before = try_heavy_ball_step_(X, V, M, Y, lr, momentum, loss);
  STD_TORCH_CHECK(before.has_value(),
                  "heavy_ball_step_: the CPU kernel takes X and V [m, n] or [B, m, n] in float32 or float64 with "
                  "memory of their own, and M and Y that fit them; got ",
                  describe("X", X), ", ", describe("V", V), ", ", describe("M", M), ", ", describe("Y", Y), ", loss ",
                  loss);
  return *before;
}

}  // namespace
}  // namespace mcf

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) {
  m.impl("try_heavy_ball_step_", TORCH_BOX(&mcf::try_heavy_ball_step_));
  m.impl("heavy_ball_step_", TORCH_BOX(&mcf::heavy_ball_step_));
}
