// `advance` of the solvers, and the single step. Contract in matconv_fast/_reference.py.
#include "advance_ways.h"

namespace mcf {
namespace {

// The tensors that every `advance` has.
struct Chunk {
  const Tensor &X, &V;
  const std::optional<Tensor>& M;
  const Tensor &Y, &lr, &limit, &threshold, &bail, &sums, &taken;
  const std::optional<Tensor>& R;
  int64_t loss, way;

  void check(const char* op) const {
    const int64_t size = X.size(0);
    const ScalarType dtype = X.scalar_type();
    STD_TORCH_CHECK(loss >= kMse && loss <= kFro, op, ": loss is 0 (mse), 1 (sse) or 2 (fro), got ", loss);
    STD_TORCH_CHECK(way >= kLockstep && way <= kGemm, op, ": way is 0 to 3, got ", way);
    STD_TORCH_CHECK(way != kAlone || loss != kFro, op, ": fro couples the rows, which cannot run alone");
    STD_TORCH_CHECK(M.has_value() || way == kLockstep || way == kAlone, op, ": without M there is no product");
    for (const Tensor* t : {&X, &V, &lr}) mcf::check(*t, dtype, size, op);
    if (M.has_value()) mcf::check(*M, dtype, M->size(0) == 1 ? 1 : size, op);
    mcf::check(Y, dtype, Y.size(0) == 1 ? 1 : size, op);
    for (const Tensor* t : {&threshold, &bail, &sums}) mcf::check(*t, ScalarType::Double, size, op);
    for (const Tensor* t : {&limit, &taken}) mcf::check(*t, ScalarType::Long, size, op);
    if (R.has_value()) mcf::check(*R, dtype, size, op);
    const int64_t n = X.size(2), p = M.has_value() ? M->size(2) : n;
    STD_TORCH_CHECK((!M.has_value() || M->size(1) == n) && Y.size(1) == X.size(1) && Y.size(2) == p &&
                        V.size(1) == X.size(1) && V.size(2) == n && sums.size(1) >= 1 &&
                        (!R.has_value() || (R->size(1) == Y.size(1) && R->size(2) == p)),
                    op, ": shapes of X, V, M, Y, sums and R do not fit");
  }

  template <typename T>
  DescentBatch<T> batch() const {
    const int64_t m = X.size(1), n = X.size(2), p = Y.size(2);
    DescentBatch<T> all = {};
    all.first = {};
    all.first.X = write<T>(X), all.first.V = write<T>(V), all.first.Y = read<T>(Y);
    all.first.M = M.has_value() ? read<T>(*M) : nullptr, all.first.product = M.has_value();
    all.first.m = m, all.first.n = n, all.first.p = p;
    all.first.scale = static_cast<T>(gradient_scale(loss, static_cast<double>(m) * p)), all.first.unit = loss == kFro;
    all.first.sums = write<double>(sums), all.first.last_sum = all.first.stops = true;
    all.first.R = R.has_value() ? write<T>(*R) : nullptr;
    all.M_stride = !M.has_value() || M->size(0) == 1 ? 0 : n * p;
    all.Y_stride = Y.size(0) == 1 ? 0 : m * p;
    all.columns = sums.size(1), all.lr = read<T>(lr), all.limit = read<int64_t>(limit);
    all.threshold = read<double>(threshold), all.bail = read<double>(bail), all.taken = write<int64_t>(taken);
    return all;
  }
};

void heavy_ball_advance(const Tensor any_X, const Tensor any_V, const std::optional<Tensor> any_M, const Tensor any_Y,
                        const Tensor lr, const Tensor momentum, const Tensor limit, const Tensor threshold,
                        const Tensor bail, const Tensor any_sums, const Tensor taken, const std::optional<Tensor> R,
                        int64_t loss, int64_t way) {
  constexpr const char* op = "heavy_ball_advance";
  Updated updated_X(any_X), updated_V(any_V), updated_sums(any_sums);
  const Tensor &X = updated_X.get(), &V = updated_V.get(), Y = readable(any_Y);
  const std::optional<Tensor> M = readable(any_M);
  const Chunk chunk{X, V, M, Y, lr, limit, threshold, bail, updated_sums.get(), taken, R, loss, way};
  chunk.check(op);
  check(momentum, X.scalar_type(), X.size(0), op);
  with_dtype(X.scalar_type(), op, [&](auto zero) {
    using T = decltype(zero);
    DescentBatch<T> batch = chunk.batch<T>();
    batch.momentum = read<T>(momentum);
    Advance<T>{X, V, M, batch, typed_kernels(T()).advance.heavy_ball, X.size(0), 1, R}.run(way);
  });
  for (Updated* t : {&updated_X, &updated_V, &updated_sums}) t->put_back();
}

void adam_advance(const Tensor any_X, const Tensor any_first, const Tensor any_second, const Tensor count,
                  const std::optional<Tensor> any_M, const Tensor any_Y, const Tensor lr, double first_decay,
                  double second_decay, double eps, const Tensor limit, const Tensor threshold, const Tensor bail,
                  const Tensor any_sums, const Tensor taken, const std::optional<Tensor> R, int64_t loss, int64_t way) {
  constexpr const char* op = "adam_advance";
  Updated updated_X(any_X), updated_first(any_first), updated_second(any_second), updated_sums(any_sums);
  const Tensor &X = updated_X.get(), &first = updated_first.get(), &second = updated_second.get();
  const Tensor Y = readable(any_Y);
  const std::optional<Tensor> M = readable(any_M);
  const Chunk chunk{X, first, M, Y, lr, limit, threshold, bail, updated_sums.get(), taken, R, loss, way};
  chunk.check(op);
  STD_TORCH_CHECK(way != kLanes, op, ": Adam does not run in lanes");
  check(second, X.scalar_type(), X.size(0), op);
  check(count, ScalarType::Double, X.size(0), op);
  STD_TORCH_CHECK(second.numel() == X.numel(), op, ": the second moment must have X's shape");
  with_dtype(X.scalar_type(), op, [&](auto zero) {
    using T = decltype(zero);
    DescentBatch<T> batch = chunk.batch<T>();
    batch.first.S = write<T>(second), batch.made = read<double>(count);
    batch.first.first_decay = first_decay, batch.first.second_decay = second_decay, batch.first.eps = eps;
    Advance<T>{X, first, M, batch, typed_kernels(T()).advance.adam, X.size(0), 3, R}.run(way);
    for (int64_t b = 0; b < X.size(0); ++b)
      if (batch.runs(b)) write<double>(count)[b] += static_cast<double>(batch.taken[b]);
  });
  for (Updated* t : {&updated_X, &updated_first, &updated_second, &updated_sums}) t->put_back();
}

// Whether two tensors may share memory: whether the stretches from their first to their last elements meet.
bool overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto end = [](const Tensor& t) {
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return static_cast<const char*>(t.data_ptr()) + (last + 1) * t.element_size();
  };
  return static_cast<const char*>(a.data_ptr()) < end(b) && static_cast<const char*>(b.data_ptr()) < end(a);
}

// One update of X and V [m, n] or [batch, m, n], in place; the loss before it. A matrix without a batch dimension
// serves all problems. An undefined tensor, and nothing is written, for those that the kernel does not take: whoever
// called looks closer then, in Python, where the checks take longer than the step.
Tensor heavy_ball_step_(const Tensor any_X, const Tensor any_V, const std::optional<Tensor> any_M,
                        const std::optional<Tensor> any_Y, double lr, double momentum, int64_t loss) {
  const int64_t dim = any_X.dim();
  const ScalarType dtype = any_X.scalar_type();
  // elements that share memory cannot be written to, and a tensor elsewhere has no business here
  const auto writable = [](const Tensor& t) {
    if (!t.is_cpu()) return false;
    for (int64_t d = 0; d < t.dim(); ++d)
      if (t.stride(d) == 0 && t.size(d) > 1) return false;
    return true;
  };
  if (!writable(any_X) || !writable(any_V)) return Tensor();
  Updated updated_X(any_X), updated_V(any_V);
  const Tensor &X = updated_X.get(), &V = updated_V.get();
  // M and Y as the kernels read them: contiguous, and float32 where they came in a lower precision than X
  const auto widened = [&](const std::optional<Tensor>& t) {
    if (!t.has_value() || !t->is_cpu()) return t;
    const bool low = t->scalar_type() == ScalarType::BFloat16 || t->scalar_type() == ScalarType::Half;
    return readable(low && dtype == ScalarType::Float ? torch::stable::to(*t, ScalarType::Float) : t);
  };
  if (any_M.has_value() && (any_M->dim() < 2 || (any_Y.has_value() && any_Y->scalar_type() != any_M->scalar_type())))
    return Tensor();
  std::optional<Tensor> M = widened(any_M), Y = widened(any_Y);
  if ((dim != 2 && dim != 3) || (dtype != ScalarType::Float && dtype != ScalarType::Double)) return Tensor();
  const int64_t size = dim == 3 ? X.size(0) : 1, m = X.size(dim - 2), n = X.size(dim - 1);
  const int64_t p = M.has_value() ? M->size(M->dim() - 1) : n;
  const auto fits = [&](const Tensor& t, int64_t rows, int64_t columns) {
    const int64_t d = t.dim();
    return t.is_cpu() && t.is_contiguous() && t.scalar_type() == dtype && (d == 2 || (d == 3 && dim == 3)) &&
           t.size(d - 2) == rows && t.size(d - 1) == columns && (d == 2 || t.size(0) == 1 || t.size(0) == size);
  };
  if (!fits(X, m, n) || !fits(V, m, n) || V.dim() != dim || V.numel() != X.numel() ||
      (M.has_value() && !fits(*M, n, p)) || (Y.has_value() ? !fits(*Y, m, p) : m != p) || loss < kMse || loss > kFro)
    return Tensor();
  if (overlap(any_X, any_V)) return Tensor();
  for (std::optional<Tensor>* t : {&M, &Y})  // what is written must not be read as something else
    if (t->has_value() && (overlap(X, **t) || overlap(V, **t))) *t = torch::stable::clone(**t);
  const Tensor result = empty_values(X, dim == 3, size);
  with_dtype(dtype, "heavy_ball_step_", [&](auto zero) {
    using T = decltype(zero);
    Workspace<T> identity(Y.has_value() ? 0 : m * p);
    if (!Y.has_value()) fill_identity(identity.get(), m, p);
    const double elements = static_cast<double>(m) * p;
    double one[2];
    Workspace<double> many(size > 1 ? 2 * size : 0);
    double* sums = size > 1 ? many.get() : one;
    DescentBatch<T> batch = {};
    Descent<T>& q = batch.first;
    q.X = write<T>(X), q.V = write<T>(V), q.M = M.has_value() ? read<T>(*M) : nullptr;
    q.product = M.has_value(), q.once = true;
    q.Y = Y.has_value() ? read<T>(*Y) : identity.get(), q.m = m, q.n = n, q.p = p;
    q.lr = static_cast<T>(lr), q.momentum = static_cast<T>(momentum);
    q.scale = static_cast<T>(gradient_scale(loss, elements)), q.unit = loss == kFro, q.limit = 1;
    q.sums = sums;
    batch.M_stride = M.has_value() && M->dim() == 3 && M->size(0) > 1 ? n * p : 0;
    batch.Y_stride = Y.has_value() && Y->dim() == 3 && Y->size(0) > 1 ? m * p : 0;
    batch.columns = 2;
    const bool few = size < static_cast<int64_t>(torch::stable::get_num_threads());
    const auto runners = typed_kernels(T()).advance.heavy_ball;
    if (M.has_value() && few && elements * n > kSmall) {  // packing M for one use does not pay
      const auto batched = [](const Tensor& t) { return t.dim() == 3 ? t : torch::stable::unsqueeze(t, 0); };
      const Tensor x = batched(X), v = batched(V);
      const std::optional<Tensor> a = batched(*M);
      Advance<T>{x, v, a, batch, runners, size, 1, std::nullopt}.run(kGemm);
    } else {
      const bool tall = !M.has_value() && few && loss != kFro && elements > kSweep;
      Advance<T>{X, V, M, batch, runners, size, 1, std::nullopt}.run(tall ? kAlone : kLockstep);
    }
    for (int64_t b = 0; b < size; ++b) write<T>(result)[b] = static_cast<T>(loss_of(sums[2 * b], loss, elements));
  });
  updated_X.put_back();
  updated_V.put_back();
  return result;
}

}  // namespace
}  // namespace mcf

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) {
  m.impl("heavy_ball_advance", TORCH_BOX(&mcf::heavy_ball_advance));
  m.impl("adam_advance", TORCH_BOX(&mcf::adam_advance));
  m.impl("heavy_ball_step_", TORCH_BOX(&mcf::heavy_ball_step_));
}
