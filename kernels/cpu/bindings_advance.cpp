// `advance`: many updates of a batch by one rule. Contract in matconv_fast/_reference.py.
#include <vector>

#include "run_advance.h"

namespace mcf {
namespace {

constexpr const char* kOp = "advance";

// The names in a table, for errors.
template <typename Table>
std::string names(const Table* table, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::string(table[i].name);
  return text;
}

template <typename T>
const RuleKernels<T>& find_rule(const std::string& name) {
  const AdvanceKernels<T>& kernels = typed_kernels(T()).advance;
  for (int i = 0; i < kernels.rule_count; ++i)
    if (name == kernels.rules[i].name) return kernels.rules[i];
  STD_TORCH_CHECK(false, kOp, ": rule must be one of ", names(kernels.rules, kernels.rule_count), ", got '", name, "'");
}

Algorithm parse_algorithm(const std::string& name, const Shape& shape) {
  Algorithm algorithm;
  STD_TORCH_CHECK(find_algorithm(name.c_str(), algorithm), kOp, ": algorithm must be one of ",
                  names(kAlgorithms, sizeof(kAlgorithms) / sizeof(kAlgorithms[0])), ", got '", name, "'");
  const char* need = unmet_need(algorithm, shape);
  STD_TORCH_CHECK(!need, kOp, ": algorithm ", name, " needs ", need, "; got m ", shape.m, ", n ", shape.n, ", p ",
                  shape.p, shape.product ? "" : ", no M", shape.coupled ? ", loss fro" : "");
  return algorithm;
}

// The arguments but for the rule and the algorithm; the first line holds contiguous copies where they are needed.
struct Arguments {
  const Tensor &X, &Y, &hyper, &sums;
  const std::optional<Tensor>& M;
  const std::vector<Updated>& state;
  const Tensor &step, &limit, &threshold, &bail, &steps_done;
  const std::optional<Tensor>& R;
  double scale;
  bool coupled;

  // Guards the memory that the kernels access; returns the shape.
  Shape check() const {
    const int64_t size = X.dim() == 3 ? X.size(0) : -1;
    const ScalarType dtype = X.scalar_type();
    const auto shared = [&](const Tensor& t) { return t.dim() > 0 && t.size(0) == 1 ? 1 : size; };
    const auto is = [](const Tensor& t, int64_t rows, int64_t columns) {
      return t.dim() == 3 && t.size(1) == rows && t.size(2) == columns;
    };
    mcf::check(X, dtype, size, kOp), mcf::check(Y, dtype, shared(Y), kOp);
    if (M.has_value()) mcf::check(*M, dtype, shared(*M), kOp);
    if (R.has_value()) mcf::check(*R, dtype, size, kOp);
    for (const Updated& s : state) mcf::check(s.get(), dtype, size, kOp);
    for (const Tensor* t : {&threshold, &bail, &sums}) mcf::check(*t, ScalarType::Double, size, kOp);
    for (const Tensor* t : {&step, &limit, &steps_done}) mcf::check(*t, ScalarType::Long, size, kOp);
    mcf::check(hyper, ScalarType::Double, hyper.size(0), kOp);

    const int64_t m = X.size(1), n = X.size(2), p = M.has_value() && M->dim() == 3 ? M->size(2) : n;
    bool fits = is(Y, m, p) && (!M.has_value() || is(*M, n, p)) && (!R.has_value() || is(*R, m, p)) &&
                sums.dim() == 2 && sums.size(1) >= 1 && hyper.dim() == 2 && hyper.size(1) == size;
    for (const Updated& s : state) fits = fits && is(s.get(), m, n);
    STD_TORCH_CHECK(fits, kOp, ": shapes do not fit: ", describe("X", X), ", ", state.size(), " state matrices, ",
                    describe("M", M), ", ", describe("Y", Y), ", ", describe("hyper", hyper), ", ",
                    describe("sums", sums), ", ", describe("R", R));
    return {m, n, p, M.has_value(), coupled};
  }

  template <typename T>
  DescentBatch<T> batch(const Shape& shape, const RuleKernels<T>& rule) const {
    STD_TORCH_CHECK(static_cast<int64_t>(state.size()) == rule.states && hyper.size(0) == rule.hypers, kOp, ": rule ",
                    rule.name, " has ", rule.states, " state matrices and ", rule.hypers, " hyperparameters, got ",
                    state.size(), " and ", hyper.size(0));
    DescentBatch<T> all = {};
    Descent<T>& q = all.first;
    static_cast<Shape&>(q) = shape;
    q.X = write<T>(X), q.Y = read<T>(Y);
    q.M = M.has_value() ? read<T>(*M) : nullptr, q.R = R.has_value() ? write<T>(*R) : nullptr;
    for (int k = 0; k < rule.states; ++k) q.state[k] = write<T>(state[k].get());
    q.scale = static_cast<T>(scale), q.last_sum = q.stops = true;
    q.hyper = {read<double>(hyper), hyper.size(1)};
    all.size = X.size(0), all.hyper_stride = 1, all.step = read<int64_t>(step);
    all.M_stride = !M.has_value() || M->size(0) == 1 ? 0 : shape.n * shape.p;
    all.Y_stride = Y.size(0) == 1 ? 0 : shape.m * shape.p;
    all.criteria = {read<int64_t>(limit), read<double>(threshold), read<double>(bail)};
    all.trace = {write<double>(sums), sums.size(1), write<int64_t>(steps_done)};
    return all;
  }
};

void advance(const std::string& rule, const Tensor& any_X, const std::vector<Tensor>& any_state,
             const std::optional<Tensor>& any_M, const Tensor& any_Y, const Tensor& any_hyper, const Tensor& step,
             double scale, bool coupled, const Tensor& limit, const Tensor& threshold, const Tensor& bail,
             const Tensor& any_sums, const Tensor& steps_done, const std::optional<Tensor>& R,
             const std::string& algorithm) {
  Updated X(any_X), sums(any_sums);
  std::vector<Updated> state(any_state.begin(), any_state.end());
  const Tensor Y = readable(any_Y), hyper = readable(any_hyper);
  const std::optional<Tensor> M = readable(any_M);
  const Arguments arguments = {X.get(), Y,         hyper, sums.get(), M, state, step,
                               limit,   threshold, bail,  steps_done, R, scale, coupled};
  const Shape shape = arguments.check();
  const Algorithm chosen = parse_algorithm(algorithm, shape);
  with_dtype(X.get().scalar_type(), kOp, [&](auto zero) {
    using T = decltype(zero);
    const RuleKernels<T>& kernels = find_rule<T>(rule);
    const DescentBatch<T> batch = arguments.batch<T>(shape, kernels);
    Advance<T>(batch, kernels, chosen).run({X.get(), state[0].get(), M, R});
  });
  X.put_back(), sums.put_back();
  for (Updated& s : state) s.put_back();
}

}  // namespace
}  // namespace mcf

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) { m.impl("advance", TORCH_BOX(&mcf::advance)); }
