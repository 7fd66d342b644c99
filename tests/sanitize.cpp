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

template <typename T>
struct Problem {
  int64_t m, n, p, limit;
  std::vector<T> X, V, M, Y;
  std::vector<double> sums;
  T lr = T(0.01), momentum = T(0.5), scale = T(0.1);
  bool unit;

  Problem(int64_t m, int64_t n, int64_t p, bool unit)
      : m(m),
        n(n),
        p(p),
        limit(draw(0, 4)),
        X(random<T>(m * n)),
        V(random<T>(m * n)),
        M(random<T>(n * p)),
        Y(random<T>(m * p)),
        sums(limit + 1),
        unit(unit) {}

  mcf::HeavyBall<T> arguments() {
    return {X.data(), V.data(), Y.data(), m, n, p, lr, momentum, unit, limit, -1, INFINITY, sums.data()};
  }

  // The same in float64, one entry at a time.
  void plain(std::vector<double>& x, std::vector<double>& sum_of) const {
    x.assign(X.begin(), X.end());
    std::vector<double> v(V.begin(), V.end()), r(m * p);
    for (int64_t k = 0;; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < p; ++j) {
          double value = -double(Y[i * p + j]);
          for (int64_t q = 0; q < n; ++q) value += x[i * n + q] * M[q * p + j];
          r[i * p + j] = value, sum += value * value;
        }
      sum_of.push_back(sum);
      if (k == limit) return;
      const double c = unit ? (sum > 0 ? 1 / std::sqrt(sum) : 0) : double(scale);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double gradient = 0;
          for (int64_t q = 0; q < p; ++q) gradient += r[i * p + q] * M[j * p + q];
          v[i * n + j] = double(momentum) * v[i * n + j] + c * gradient;
        }
      for (int64_t i = 0; i < m * n; ++i) x[i] -= double(lr) * v[i];
    }
  }
};

template <typename T>
void heavy_ball(const char* isa, const mcf::HeavyBallKernels<T>& kernels, int64_t m, int64_t n, int64_t p, bool unit) {
  Problem<T> together(m, n, p, unit);
  auto packed = aligned<T>(kernels.packed_elements(n, p));
  auto work = aligned<T>(kernels.workspace_elements(m, n, p));
  kernels.pack(together.M.data(), n, p, unit ? T(1) : together.scale, packed.get());
  std::vector<double> x, sums;
  together.plain(x, sums);
  Problem<T> alone = together;

  expect(kernels.lockstep(together.arguments(), packed.get(), work.get()) == together.limit, "updates", isa, m, n, p);
  for (int64_t i = 0; i < m * n; ++i) expect(near(together.X[i], x[i]), "X", isa, m, n, p);
  for (size_t k = 0; k < sums.size(); ++k) expect(near(T(together.sums[k]), sums[k]), "sum", isa, m, n, p);
  if (unit) return;

  const int64_t slabs = kernels.slabs(m, n, p);
  std::vector<std::vector<double>> partial(slabs, std::vector<double>(together.limit + 1));
  std::vector<std::thread> threads;  // every slab at once: what they share is read only
  for (int64_t slab = 0; slab < slabs; ++slab)
    threads.emplace_back([&, slab] {
      auto own = aligned<T>(kernels.workspace_elements(m / slabs + 1, n, p));
      mcf::HeavyBall<T> q = alone.arguments();
      q.sums = partial[slab].data();
      kernels.alone(q, slab, packed.get(), own.get());
    });
  for (std::thread& thread : threads) thread.join();
  expect(alone.X == together.X && alone.V == together.V, "slabs alone", isa, m, n, p);
  for (int64_t k = 0; k <= together.limit; ++k) {
    double sum = 0;
    for (int64_t slab = 0; slab < slabs; ++slab) sum += partial[slab][k];
    expect(sum == together.sums[k], "sum of slabs", isa, m, n, p);
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
  for (int64_t m = 0; m <= 5; ++m)
    for (int64_t n = 0; n <= 5; ++n)
      for (int64_t p = 0; p <= 5; ++p) heavy_ball(isa, kernels.heavy_ball, m, n, p, (m + n + p) % 2);
  for (int64_t k = 0; k < 60; ++k)
    heavy_ball(isa, kernels.heavy_ball, draw(0, 90), draw(0, 40), draw(0, 40), k % 3 == 0);
  heavy_ball(isa, kernels.heavy_ball, 100, 130, 140, false);
  for (int64_t n = 0; n < 200; ++n) distance(isa, kernels.distance, n);
}

void chunks() {
  for (int64_t k = 0; k < 500; ++k) {
    const int64_t batch = draw(0, 5), columns = draw(1, 6);
    const std::vector<double> sums = random<double>(batch * columns), Y(batch, 1.0), threshold(batch, -0.9);
    std::vector<double> bail(batch, 0.9), last(batch), best(batch, NAN);
    std::vector<int64_t> taken(batch), updates(batch), status(batch, -1), again(batch), counts(2);
    for (int64_t& t : taken) t = draw(0, columns - 1);
    mcf::finish_chunk({batch, columns, sums.data(), taken.data(), threshold.data(), Y.data(), bail.data(), last.data(),
                       best.data(), updates.data(), status.data(), again.data(), counts.data()});
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
