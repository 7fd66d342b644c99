// Runs the CPU kernels on random shapes under the sanitizers (make sanitize) and compares them with plain loops in
// float64: every rule in every algorithm, on every instruction set of the processor, and on the 64-byte layout of
// AVX-512 in baseline instructions.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../kernels/cpu/choose_algorithm.h"
#include "../kernels/cpu/contract.h"
#include "../kernels/cpu/finish_chunk.h"
#include "../kernels/cpu/kernels.h"

// Weak: the Makefile links those that it compiled.
namespace mcf {
const Kernels& wide_kernels() __attribute__((weak));
#if defined(__x86_64__)
const Kernels& avx2_kernels() __attribute__((weak));
const Kernels& avx512_kernels() __attribute__((weak));
#endif
}  // namespace mcf

namespace {

std::mt19937 engine(0);

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

template <typename T>
std::vector<T> random(int64_t n) {
  std::vector<T> values(n);
  for (T& value : values) value = std::uniform_real_distribution<T>(-1, 1)(engine);
  return values;
}

template <typename T>
struct Free {
  void operator()(T* p) const { std::free(p); }
};

// Aligned as the bindings align it, and not a byte longer than asked for.
template <typename T>
std::unique_ptr<T[], Free<T>> aligned(int64_t elements) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, elements * sizeof(T) + 1)) std::exit(2);  // one byte: no empty block
  return std::unique_ptr<T[], Free<T>>(static_cast<T*>(memory));
}

void expect(bool good, const char* what, const char* isa, int64_t m, int64_t n, int64_t p) {
  if (good) return;
  std::printf("FAILED: %s, %s, m %ld, n %ld, p %ld\n", what, isa, long(m), long(n), long(p));
  std::exit(1);
}

template <typename T>
bool near(T found, double wanted) {
  return std::fabs(found - wanted) <= 300 * std::numeric_limits<T>::epsilon() * (1 + std::fabs(wanted));
}

// A rule with the hyperparameters of its problems: `update` is that of one element in float64, independent of rules.h.
// A rule without one still runs, and its slabs are compared with each other.
struct Rule {
  const char* name;
  std::vector<double> hyper;
  void (*update)(const std::vector<double>& hyper, double step, double G, double& x, double* state);
};

const Rule kRules[] = {
    {"heavy_ball",
     {0.01, 0.5},
     [](const std::vector<double>& h, double, double G, double& x, double* state) {
       state[0] = h[1] * state[0] + G;
       x -= h[0] * state[0];
     }},
    {"adam",
     {0.01, 0.9, 0.99, 1e-3},
     [](const std::vector<double>& h, double step, double G, double& x, double* state) {
       state[0] = h[1] * state[0] + (1 - h[1]) * G, state[1] = h[2] * state[1] + (1 - h[2]) * G * G;
       const double c1 = 1 - std::pow(h[1], step), c2 = 1 - std::pow(h[2], step);
       x -= h[0] * (state[0] / c1) / (std::sqrt(state[1] / c2) + h[3]);
     }},
};

template <typename T>
Rule plain_rule(const mcf::RuleKernels<T>& kernels) {
  for (const Rule& rule : kRules)
    if (std::strcmp(kernels.name, rule.name) == 0) return rule;
  return {kernels.name, std::vector<double>(kernels.hypers, 0.01), nullptr};
}

// A batch of problems with random numbers, limits and steps, and its memory.
template <typename T>
struct Problems {
  mcf::Shape f;
  int64_t size, columns = 5;
  int states;
  Rule rule;
  std::vector<T> X, M, Y, state[mcf::kMaxStates];
  std::vector<double> sums, threshold, bail, hyper;
  std::vector<int64_t> limit, step, steps_done;
  T scale = T(0.1);

  Problems(const mcf::Shape& f, int64_t size, const mcf::RuleKernels<T>& kernels)
      : f(f),
        size(size),
        states(kernels.states),
        rule(plain_rule(kernels)),
        X(random<T>(size * f.m * f.n)),
        M(random<T>(f.product ? size * f.n * f.p : 0)),
        Y(random<T>(size * f.m * f.p)),
        sums(size * columns),
        threshold(size, -1.0),
        bail(size, INFINITY),
        limit(size),
        step(size),
        steps_done(size) {
    for (int k = 0; k < states; ++k) {
      state[k] = random<T>(size * f.m * f.n);
      for (T& s : state[k]) s = k ? std::fabs(s) : s;  // a second moment is not negative
    }
    for (const double h : rule.hyper) hyper.insert(hyper.end(), size, h);
    for (int64_t b = 0; b < size; ++b) limit[b] = draw(size > 1 ? -1 : 0, columns - 1), step[b] = draw(0, 5);
    if (f.coupled) scale = 1;
  }

  mcf::DescentBatch<T> arguments() {
    mcf::DescentBatch<T> all = {};
    mcf::Descent<T>& q = all.first;
    static_cast<mcf::Shape&>(q) = f;
    q.X = X.data(), q.M = M.data(), q.Y = Y.data(), q.scale = scale, q.last_sum = q.stops = true;
    for (int k = 0; k < states; ++k) q.state[k] = state[k].data();
    q.hyper = {hyper.data(), size};
    all.size = size, all.hyper_stride = 1, all.step = step.data();
    all.M_stride = f.product ? f.n * f.p : 0, all.Y_stride = f.m * f.p;
    all.criteria = {limit.data(), threshold.data(), bail.data()};
    all.trace = {sums.data(), columns, steps_done.data()};
    return all;
  }

  // Runs problem b in float64, one element at a time, and compares with `found`.
  void compare(const Problems& found, int64_t b, const char* what, const char* isa) const {
    if (!rule.update) return;
    const int64_t m = f.m, n = f.n, p = f.p;
    std::vector<double> x(X.begin() + b * m * n, X.begin() + (b + 1) * m * n), r(m * p), s(m * n * states);
    for (int64_t i = 0; i < m * n; ++i)
      for (int k = 0; k < states; ++k) s[i * states + k] = state[k][b * m * n + i];
    const T *a = M.data() + b * n * p, *y = Y.data() + b * m * p;
    for (int64_t j = 0;; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t c = 0; c < p; ++c) {
          double value = -double(y[i * p + c]) + (f.product ? 0 : x[i * n + c]);
          for (int64_t q = 0; f.product && q < n; ++q) value += x[i * n + q] * a[q * p + c];
          r[i * p + c] = value, sum += value * value;
        }
      if (limit[b] >= 0) expect(near(T(found.sums[b * columns + j]), sum), what, isa, m, n, p);
      if (j >= limit[b]) break;
      const double c = f.coupled ? (sum > 0 ? 1 / std::sqrt(sum) : 0) : double(scale);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t k = 0; k < n; ++k) {
          double G = f.product ? 0 : r[i * p + k];
          for (int64_t q = 0; f.product && q < p; ++q) G += r[i * p + q] * a[k * p + q];
          rule.update(rule.hyper, double(step[b] + j + 1), c * G, x[i * n + k], &s[(i * n + k) * states]);
        }
    }
    for (int64_t i = 0; i < m * n; ++i) {
      expect(near(found.X[b * m * n + i], x[i]), what, isa, m, n, p);
      for (int k = 0; k < states; ++k)
        expect(near(found.state[k][b * m * n + i], s[i * states + k]), what, isa, m, n, p);
    }
  }
};

// A problem by one algorithm that works on slabs: all slabs on one thread, then every slab on a thread of its own.
template <typename T>
void by_slabs(const char* isa, const mcf::AdvanceKernels<T>& kernels, const mcf::RuleKernels<T>& rule,
              const mcf::Shape& f, mcf::Algorithm algorithm) {
  if (mcf::unmet_need(algorithm, f)) return;
  const mcf::SlabAlgorithm slab_algorithm = mcf::slab_algorithm(algorithm);
  const mcf::SlabLayout<T>& layout = kernels.layouts[slab_algorithm];
  const mcf::SlabRunner<T>& runner = rule.slabs[slab_algorithm];
  const Problems<T> start(f, 1, rule);
  Problems<T> whole = start, parallel = start;
  auto packed = aligned<T>(f.product ? layout.packed_elements(f) : 0);
  auto work = aligned<T>(layout.workspace_elements(f, rule.states, false));
  const int64_t parts = draw(1, 4);
  for (int64_t part = 0; f.product && part < parts; ++part)
    layout.pack(start.M.data(), f, start.scale, packed.get(), true, part, parts);

  const char* name = mcf::kAlgorithms[static_cast<int>(algorithm)].name;
  const int64_t limit = start.limit[0];
  expect(runner.whole(whole.arguments()[0], packed.get(), work.get()) == limit, name, isa, f.m, f.n, f.p);
  start.compare(whole, 0, name, isa);
  if (f.coupled || !runner.slab) return;

  const int64_t slabs = layout.slabs(f);
  std::vector<std::vector<double>> partial(slabs, std::vector<double>(start.columns));
  std::vector<std::thread> threads;  // every slab at once: they only read what they share
  for (int64_t slab = 0; slab < slabs; ++slab)
    threads.emplace_back([&, slab] {
      auto own = aligned<T>(layout.workspace_elements(f, rule.states, true));
      mcf::Descent<T> q = parallel.arguments()[0];
      q.sums = partial[slab].data(), q.stops = false;
      runner.slab(q, slab, packed.get(), own.get());
    });
  for (std::thread& thread : threads) thread.join();
  expect(parallel.X == whole.X, "slabs in parallel", isa, f.m, f.n, f.p);
  for (int k = 0; k < rule.states; ++k)
    expect(parallel.state[k] == whole.state[k], "states of slabs in parallel", isa, f.m, f.n, f.p);
  for (int64_t j = 0; j <= limit; ++j) {
    double sum = 0;
    for (int64_t slab = 0; slab < slabs; ++slab) sum += partial[slab][j];
    expect(sum == whole.sums[j], "sum of slabs", isa, f.m, f.n, f.p);
  }
}

template <typename T>
void by_all_slabs(const char* isa, const mcf::AdvanceKernels<T>& kernels, const mcf::RuleKernels<T>& rule,
                  const mcf::Shape& f) {
  for (const mcf::Algorithm a :
       {mcf::Algorithm::kTiny, mcf::Algorithm::kSmall, mcf::Algorithm::kRows, mcf::Algorithm::kBlocks})
    by_slabs(isa, kernels, rule, f, a);
}

// A batch in lanes, drawn from one queue by two threads. Its problems stop after different numbers of updates, and some
// do not run.
template <typename T>
void by_lanes(const char* isa, const mcf::AdvanceKernels<T>& kernels, const mcf::RuleKernels<T>& rule,
              const mcf::Shape& f) {
  const Problems<T> start(f, draw(0, 40), rule);
  Problems<T> found = start;
  const mcf::DescentBatch<T> batch = found.arguments();
  mcf::Queue queue{start.size};
  const auto run = [&] {
    auto work = aligned<T>(kernels.lanes_elements(f, rule.states));
    rule.lanes(batch, queue, work.get());
  };
  std::thread other(run);
  run();
  other.join();
  for (int64_t b = 0; b < start.size; ++b) {
    start.compare(found, b, "lanes", isa);
    if (start.limit[b] >= 0) expect(found.steps_done[b] == start.limit[b], "updates in lanes", isa, f.m, f.n, f.p);
  }
}

// The sweep of algorithm gemm, on random parts of the elements.
template <typename T>
void by_sweep(const char* isa, const mcf::RuleKernels<T>& rule, int64_t n) {
  Problems<T> start({1, n, n, false, false}, 1, rule);
  Problems<T> found = start;
  const std::vector<T> G = random<T>(n);
  const mcf::Descent<T> q = found.arguments()[0];
  const double decay = rule.decay(q);
  for (int64_t k = 0; rule.accumulates && k < n; ++k) found.state[0][k] = T(decay * found.state[0][k] + G[k]);
  const int64_t cut = draw(0, n);
  rule.sweep(q, 2, rule.accumulates ? nullptr : G.data(), 0, cut);
  rule.sweep(q, 2, rule.accumulates ? nullptr : G.data(), cut, n - cut);
  for (int64_t k = 0; start.rule.update && k < n; ++k) {
    double x = start.X[k], state[mcf::kMaxStates];
    for (int s = 0; s < rule.states; ++s) state[s] = start.state[s][k];
    start.rule.update(start.rule.hyper, double(start.step[0] + 3), G[k], x, state);
    expect(near(found.X[k], x), "sweep of X", isa, n, 0, 0);
    for (int s = 0; s < rule.states; ++s) expect(near(found.state[s][k], state[s]), "sweep of a state", isa, n, 0, 0);
  }
}

template <typename T>
void loss(const char* isa, const mcf::LossKernels<T>& kernels, int64_t m, int64_t n, int64_t p, bool product) {
  if (!product) p = n;
  const std::vector<T> X = random<T>(m * n), M = random<T>(product ? n * p : 0), Y = random<T>(m * p);
  std::vector<T> R_Mt(m * n), Xt_R(product ? n * p : 0), R(m * p);
  auto work = aligned<T>(kernels.workspace_elements(m, n, p));
  const double sum = kernels.residual(
      {X.data(), M.data(), Y.data(), product, m, n, p, R_Mt.data(), product ? Xt_R.data() : nullptr, R.data()},
      work.get());
  double wanted = 0;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < p; ++j) {
      double value = -double(Y[i * p + j]) + (product ? 0 : double(X[i * n + j]));
      for (int64_t q = 0; product && q < n; ++q) value += double(X[i * n + q]) * M[q * p + j];
      expect(near(R[i * p + j], value), "R", isa, m, n, p);
      wanted += value * value;
    }
  expect(near(T(sum), wanted), "loss", isa, m, n, p);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double value = product ? 0 : double(R[i * p + j]);
      for (int64_t q = 0; product && q < p; ++q) value += double(R[i * p + q]) * M[j * p + q];
      expect(near(R_Mt[i * n + j], value), "R M^T", isa, m, n, p);
    }
  for (int64_t i = 0; product && i < n; ++i)
    for (int64_t j = 0; j < p; ++j) {
      double value = 0;
      for (int64_t q = 0; q < m; ++q) value += double(X[q * n + i]) * R[q * p + j];
      expect(near(Xt_R[i * p + j], value), "X^T R", isa, m, n, p);
    }
}

template <typename T>
void residual_sweep(const char* isa, const mcf::SweepKernels<T>& kernels, int64_t n) {
  std::vector<T> R = random<T>(n);
  const std::vector<T> Y = random<T>(n), before = R;
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += double(R[k] - Y[k]) * double(R[k] - Y[k]);
  expect(near(T(kernels.residual(R.data(), Y.data(), n)), sum), "sweep of squares", isa, n, 0, 0);
  for (int64_t k = 0; k < n; ++k) expect(R[k] == before[k] - Y[k], "sweep of a residual", isa, n, 0, 0);
}

template <typename T>
void distance(const char* isa, const mcf::DistanceKernels<T>& kernels, int64_t n) {
  const std::vector<T> A = random<T>(n), B = random<T>(n);
  double squares = 0, absolute = 0, largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double d = std::fabs(double(A[i] - B[i]));
    squares += d * d, absolute += d, largest = std::fmax(largest, d);
  }
  expect(near(T(kernels.squares(A.data(), B.data(), n)), squares), "squares", isa, n, 0, 0);
  expect(near(T(kernels.absolute(A.data(), B.data(), n)), absolute), "absolute", isa, n, 0, 0);
  expect(kernels.largest(A.data(), B.data(), n) == largest, "largest", isa, n, 0, 0);
}

// Problems of which the first is singular, by two threads; the status of each against its residual in plain loops.
template <typename T>
void direct(const char* isa, const mcf::DirectKernel<T>& kernel, int64_t group, int64_t m, int64_t n, bool identity) {
  const int64_t size = draw(0, 70), rows = identity ? n : m;
  std::vector<T> M = random<T>(size * n * n), Y = random<T>(identity ? 0 : size * rows * n), X(size * rows * n);
  std::fill(M.begin(), M.begin() + std::min<int64_t>(size, 1) * n * n, T(0));
  std::vector<T> losses(2 * size);
  std::vector<double> squares(size);
  std::vector<int64_t> status(size, -2);
  const double rtol = 1e4 * std::numeric_limits<T>::epsilon();
  const mcf::DirectBatch<T> batch = {size,
                                     rows,
                                     n,
                                     M.data(),
                                     identity ? nullptr : Y.data(),
                                     n * n,
                                     rows * n,
                                     {rtol, 0, 0, 0.1, 1},
                                     X.data(),
                                     losses.data(),
                                     squares.data(),
                                     status.data()};
  mcf::Queue queue{mcf::parts_of(size, group)};
  const auto run = [&] {
    auto work = aligned<double>(kernel.workspace_elements(n));
    kernel.solve(batch, queue, work.get());
  };
  std::thread other(run);
  run();
  other.join();
  for (int64_t b = 0; b < size; ++b) {
    double sum = 0, wanted = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double y = identity ? i == j : double(Y[(b * rows + i) * n + j]);
        double r = -y;
        for (int64_t q = 0; q < n; ++q) r += double(X[(b * rows + i) * n + q]) * double(M[(b * n + q) * n + j]);
        sum += r * r, wanted += y * y;
      }
    const bool converged = status[b] == mcf::kStatusConverged, tiny = sum <= 1.01 * rtol * rtol * wanted;
    expect(b ? !converged || tiny : status[b] == mcf::kStatusRunning, "direct solution", isa, rows, n, n);
  }
}

template <typename T>
void drive(const char* isa, const mcf::TypedKernels<T>& kernels) {
  const auto shape = [](int64_t m, int64_t n, int64_t p, bool product, bool coupled) {
    return mcf::Shape{m, n, product ? p : n, product, coupled};
  };
  for (int i = 0; i < kernels.advance.rule_count; ++i) {
    const mcf::RuleKernels<T>& rule = kernels.advance.rules[i];
    const auto slabs = [&](const mcf::Shape& f) { by_all_slabs(isa, kernels.advance, rule, f); };
    for (int64_t m = 0; m <= 5; ++m)
      for (int64_t n = 0; n <= 5; ++n)
        for (int64_t p = 0; p <= 5; ++p) slabs(shape(m, n, p, true, (m + n + p) % 2));
    for (int64_t k = 0; k < 40; ++k) {
      slabs(shape(draw(0, 26), draw(0, 17), draw(0, 17), true, k % 3 == 0));
      slabs(shape(draw(0, 90), draw(0, 40), draw(0, 40), k % 4 != 0, k % 3 == 0));
      by_lanes(isa, kernels.advance, rule, shape(draw(0, 9), draw(0, 9), draw(0, 9), true, k % 3 == 0));
    }
    slabs(shape(100, 130, 140, true, false));
    for (int64_t n = 0; n < 100; ++n) by_sweep(isa, rule, n);
  }
  for (int64_t k = 0; k < 40; ++k) loss(isa, kernels.loss, draw(0, 30), draw(0, 30), draw(0, 30), k % 4 != 0);
  for (int64_t n = 1; n <= 33; ++n)
    for (const bool identity : {true, false}) {
      if (n <= mcf::kMostInLanes) direct(isa, kernels.direct.lanes, mcf::kDirectGroup, draw(1, 9), n, identity);
      direct(isa, kernels.direct.rows, 1, draw(1, 50), n, identity);
    }
  for (int64_t n = 0; n < 200; ++n) distance(isa, kernels.distance, n), residual_sweep(isa, kernels.sweep, n);
}

void chunks() {
  for (int64_t k = 0; k < 500; ++k) {
    const int64_t batch = draw(0, 5), columns = draw(1, 6);
    const std::vector<double> sums = random<double>(batch * columns), Y(batch, 1.0), threshold(batch, -0.9);
    std::vector<double> bail(batch, 0.9), last(batch), best(batch, NAN);
    std::vector<int64_t> steps_done(batch), updates(batch), status(batch, mcf::kStatusRunning), replay_to(batch);
    for (int64_t& t : steps_done) t = draw(0, columns - 1);
    const mcf::FinishChunk chunk = {columns,        sums.data(),   steps_done.data(), threshold.data(),
                                    Y.data(),       bail.data(),   last.data(),       best.data(),
                                    updates.data(), status.data(), replay_to.data()};
    mcf::finish_chunk(chunk, 0, batch / 2), mcf::finish_chunk(chunk, batch / 2, batch);
    for (int64_t b = 0; b < batch; ++b)
      expect(updates[b] <= steps_done[b] && replay_to[b] < steps_done[b], "chunk", "", batch, 0, 0);
  }
}

}  // namespace

int main() {
  std::vector<const mcf::Kernels*> sets = {&mcf::generic_kernels()};
  if (mcf::wide_kernels) sets.push_back(&mcf::wide_kernels());
#if defined(__x86_64__)
  if (mcf::avx2_kernels && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    sets.push_back(&mcf::avx2_kernels());
  if (mcf::avx512_kernels && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    sets.push_back(&mcf::avx512_kernels());
#endif
  for (const mcf::Kernels* kernels : sets) {
    drive(kernels->name, kernels->f32);
    drive(kernels->name, kernels->f64);
    std::printf("%s: clean\n", kernels->name);
  }
  chunks();
}
