// Drives the CPU kernels over random shapes under the sanitizers (make sanitize), against plain loops in float64: every
// instruction set that the processor has, and the 64-byte layout of AVX-512 in whatever instructions there are.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../kernels/cpu/finish_chunk.h"
#include "../kernels/cpu/kernels.h"

namespace mcf {
const Kernels& wide_kernels();
}

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

enum class Rule { heavy_ball, adam };

template <typename T>
struct Problem {
  int64_t m, n, p, limit;
  bool product, unit, once = draw(0, 3) == 0;
  std::vector<T> X, V, S, M, Y;
  std::vector<double> sums;
  T lr = T(0.01), momentum = T(0.5), scale = T(0.1);

  Problem(int64_t m, int64_t n, int64_t p, bool product, bool unit)
      : m(m),
        n(n),
        p(product ? p : n),
        limit(draw(0, 4)),
        product(product),
        unit(unit),
        X(random<T>(m * n)),
        V(random<T>(m * n)),
        S(m * n, T(0.5)),
        M(random<T>(product ? n * p : 0)),
        Y(random<T>(m * this->p)),
        sums(limit + 1) {}

  mcf::Descent<T> arguments() {
    mcf::Descent<T> q = {};
    q.X = X.data(), q.V = V.data(), q.S = S.data(), q.M = M.data(), q.Y = Y.data(), q.m = m, q.n = n, q.p = p;
    q.lr = lr, q.momentum = momentum, q.scale = unit ? T(1) : scale, q.product = product, q.unit = unit, q.once = once;
    q.first_decay = 0.9, q.second_decay = 0.99, q.eps = 1e-3, q.made = 2;
    q.limit = limit, q.last_sum = true, q.threshold = -1, q.bail = INFINITY, q.sums = sums.data();
    return q;
  }

  // The same in float64, one entry at a time.
  void plain(Rule rule, std::vector<double>& x, std::vector<double>& sum_of) const {
    x.assign(X.begin(), X.end());
    std::vector<double> v(V.begin(), V.end()), s(S.begin(), S.end()), r(m * p);
    for (int64_t k = 0;; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < p; ++j) {
          double value = -double(Y[i * p + j]) + (product ? 0 : x[i * n + j]);
          for (int64_t q = 0; product && q < n; ++q) value += x[i * n + q] * M[q * p + j];
          r[i * p + j] = value, sum += value * value;
        }
      sum_of.push_back(sum);
      if (k == limit) return;
      const double c = unit ? (sum > 0 ? 1 / std::sqrt(sum) : 0) : double(scale);
      const double c1 = 1 - std::pow(0.9, k + 3), c2 = 1 - std::pow(0.99, k + 3);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double gradient = product ? 0 : r[i * p + j];
          for (int64_t q = 0; product && q < p; ++q) gradient += r[i * p + q] * M[j * p + q];
          gradient *= c;
          double &first = v[i * n + j], &second = s[i * n + j];
          if (rule == Rule::heavy_ball) {
            first = double(momentum) * first + gradient;
            x[i * n + j] -= double(lr) * first;
          } else {
            first = 0.9 * first + 0.1 * gradient, second = 0.99 * second + 0.01 * gradient * gradient;
            x[i * n + j] -= double(lr) * (first / c1) / (std::sqrt(second / c2) + 1e-3);
          }
        }
    }
  }
};

template <typename T>
void advance(const char* isa, const mcf::AdvanceKernels<T>& kernels, Rule rule, int64_t m, int64_t n, int64_t p,
             bool product, bool unit) {
  const mcf::Runners<T>& runners = rule == Rule::adam ? kernels.adam : kernels.heavy_ball;
  const int64_t buffers = rule == Rule::adam ? 3 : 1;
  Problem<T> together(m, n, p, product, unit);
  p = together.p;
  auto packed = aligned<T>(product ? kernels.packed_elements(together.arguments()) : 0);
  auto work = aligned<T>(kernels.workspace_elements(together.arguments(), buffers, false));
  const int64_t parts = draw(1, 4);
  for (int64_t part = 0; product && part < parts; ++part)
    kernels.pack(together.M.data(), together.arguments(), together.arguments().scale, packed.get(), true, part, parts);
  std::vector<double> x, sums;
  together.plain(rule, x, sums);
  Problem<T> alone = together;

  expect(runners.lockstep(together.arguments(), packed.get(), work.get()) == together.limit, "updates", isa, m, n, p);
  for (int64_t i = 0; i < m * n; ++i) expect(near(together.X[i], x[i]), "X", isa, m, n, p);
  for (size_t k = 0; k < sums.size(); ++k) expect(near(T(together.sums[k]), sums[k]), "sum", isa, m, n, p);
  if (unit) return;

  const int64_t slabs = kernels.slabs(together.arguments());
  std::vector<std::vector<double>> partial(slabs, std::vector<double>(together.limit + 1));
  std::vector<std::thread> threads;  // every slab at once: what they share is read only
  for (int64_t slab = 0; slab < slabs; ++slab)
    threads.emplace_back([&, slab] {
      auto own = aligned<T>(kernels.workspace_elements(together.arguments(), buffers, true));
      mcf::Descent<T> q = alone.arguments();
      q.sums = partial[slab].data();
      runners.alone(q, slab, packed.get(), own.get());
    });
  for (std::thread& thread : threads) thread.join();
  expect(alone.X == together.X && alone.V == together.V, "slabs alone", isa, m, n, p);
  for (int64_t k = 0; k <= together.limit; ++k) {
    double sum = 0;
    for (int64_t slab = 0; slab < slabs; ++slab) sum += partial[slab][k];
    expect(sum == together.sums[k], "sum of slabs", isa, m, n, p);
  }
}

// A batch whose problems stop after different numbers of updates, some of them left alone.
template <typename T>
void lanes(const char* isa, const mcf::AdvanceKernels<T>& kernels, int64_t m, int64_t n, int64_t p, bool unit) {
  const int64_t size = draw(0, 40), columns = 6;
  Problem<T> all(size * m, n, p, true, unit);
  all.M = random<T>(size * n * p);
  std::vector<double> sums(size * columns), never(size, -1.0), bail(size, INFINITY);
  std::vector<T> lr(size, all.lr), momentum(size, all.momentum);
  std::vector<int64_t> limit(size), taken(size);
  for (int64_t& l : limit) l = draw(-1, columns - 1);
  const std::vector<T> X = all.X, V = all.V;

  mcf::DescentBatch<T> batch = {};
  batch.first = all.arguments(), batch.first.m = m, batch.first.S = nullptr, batch.first.sums = sums.data();
  batch.M_stride = n * p, batch.Y_stride = m * p, batch.columns = columns, batch.lr = lr.data();
  batch.momentum = momentum.data(), batch.limit = limit.data(), batch.threshold = never.data();
  batch.bail = bail.data(), batch.taken = taken.data();
  mcf::Queue queue{size};
  std::vector<std::thread> threads;
  for (int k = 0; k < 2; ++k)
    threads.emplace_back([&] {
      auto work = aligned<T>(kernels.lanes_elements(m, n, p));
      kernels.lanes(batch, queue, work.get());
    });
  for (std::thread& thread : threads) thread.join();

  for (int64_t b = 0; b < size; ++b) {
    Problem<T> one(m, n, p, true, unit);
    const auto part = [b](const std::vector<T>& from, int64_t count) {
      return std::vector<T>(from.begin() + b * count, from.begin() + (b + 1) * count);
    };
    one.X = part(X, m * n), one.V = part(V, m * n), one.M = part(all.M, n * p), one.Y = part(all.Y, m * p);
    one.limit = limit[b] < 0 ? 0 : limit[b];
    if (unit) one.scale = 1;
    std::vector<double> x, wanted;
    one.plain(Rule::heavy_ball, x, wanted);
    for (int64_t i = 0; i < m * n; ++i) expect(near(all.X[b * m * n + i], x[i]), "X in lanes", isa, m, n, p);
    for (int64_t k = 0; k <= limit[b]; ++k)
      expect(near(T(sums[b * columns + k]), wanted[k]), "sum in lanes", isa, m, n, p);
    if (limit[b] >= 0) expect(taken[b] == limit[b], "updates in lanes", isa, m, n, p);
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
void sweeps(const char* isa, const mcf::SweepKernels<T>& kernels, int64_t n) {
  std::vector<T> R = random<T>(n), X = random<T>(n), V = random<T>(n), S(n, T(0.5));
  const std::vector<T> Y = random<T>(n), before = R, start = X;
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += double(R[k] - Y[k]) * double(R[k] - Y[k]);
  expect(near(T(kernels.residual(R.data(), Y.data(), n)), sum), "sweep of squares", isa, n, 0, 0);
  for (int64_t k = 0; k < n; ++k) expect(R[k] == before[k] - Y[k], "sweep of a residual", isa, n, 0, 0);
  kernels.descend(X.data(), V.data(), T(0.5), n);
  for (int64_t k = 0; k < n; ++k) expect(near(X[k], start[k] - 0.5 * V[k]), "sweep down", isa, n, 0, 0);
  Problem<T> problem(1, n, n, false, false);
  const std::vector<T> x = X, v = V;
  kernels.adam(problem.arguments(), 0, X.data(), V.data(), S.data(), Y.data(), n);
  for (int64_t k = 0; k < n; ++k) {
    const double first = 0.9 * v[k] + 0.1 * Y[k], second = 0.99 * 0.5 + 0.01 * Y[k] * Y[k];
    const double c1 = 1 - std::pow(0.9, 3), c2 = 1 - std::pow(0.99, 3);
    const double wanted = x[k] - double(problem.lr) * (first / c1) / (std::sqrt(second / c2) + 1e-3);
    expect(near(X[k], wanted) && near(V[k], first) && near(S[k], second), "sweep of Adam", isa, n, 0, 0);
  }
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

template <typename T>
void drive(const char* isa, const mcf::TypedKernels<T>& kernels) {
  for (const Rule rule : {Rule::heavy_ball, Rule::adam}) {
    for (int64_t m = 0; m <= 5; ++m)
      for (int64_t n = 0; n <= 5; ++n)
        for (int64_t p = 0; p <= 5; ++p) advance(isa, kernels.advance, rule, m, n, p, true, (m + n + p) % 2);
    for (int64_t k = 0; k < 40; ++k)
      advance(isa, kernels.advance, rule, draw(0, 26), draw(0, 17), draw(0, 17), true, k % 3 == 0);
    for (int64_t k = 0; k < 40; ++k)
      advance(isa, kernels.advance, rule, draw(0, 90), draw(0, 40), draw(0, 40), k % 4 != 0, k % 3 == 0);
    advance(isa, kernels.advance, rule, 100, 130, 140, true, false);
  }
  for (int64_t k = 0; k < 40; ++k) {
    lanes(isa, kernels.advance, draw(0, 9), draw(0, 9), draw(0, 9), k % 3 == 0);
    loss(isa, kernels.loss, draw(0, 30), draw(0, 30), draw(0, 30), k % 4 != 0);
  }
  for (int64_t n = 0; n < 200; ++n) distance(isa, kernels.distance, n), sweeps(isa, kernels.sweep, n);
}

void chunks() {
  for (int64_t k = 0; k < 500; ++k) {
    const int64_t batch = draw(0, 5), columns = draw(1, 6);
    const std::vector<double> sums = random<double>(batch * columns), Y(batch, 1.0), threshold(batch, -0.9);
    std::vector<double> bail(batch, 0.9), last(batch), best(batch, NAN);
    std::vector<int64_t> taken(batch), updates(batch), status(batch, -1), again(batch);
    for (int64_t& t : taken) t = draw(0, columns - 1);
    const mcf::FinishChunk chunk = {columns,        sums.data(),   taken.data(), threshold.data(),
                                    Y.data(),       bail.data(),   last.data(),  best.data(),
                                    updates.data(), status.data(), again.data()};
    mcf::finish_chunk(chunk, 0, batch / 2), mcf::finish_chunk(chunk, batch / 2, batch);
    for (int64_t b = 0; b < batch; ++b) expect(updates[b] <= taken[b] && again[b] < taken[b], "chunk", "", batch, 0, 0);
  }
}

}  // namespace

int main() {
  std::vector<const mcf::Kernels*> sets = {&mcf::generic_kernels(), &mcf::wide_kernels()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&mcf::avx2_kernels());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    sets.push_back(&mcf::avx512_kernels());
#endif
  for (const mcf::Kernels* kernels : sets) {
    drive(kernels->name, kernels->f32);
    drive(kernels->name, kernels->f64);
    std::printf("%s: clean\n", kernels->name);
  }
  chunks();
}
