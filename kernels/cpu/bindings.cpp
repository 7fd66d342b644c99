// Operators of the CPU extension, against libtorch's stable ABI: one build serves every torch from 2.10 on.
// Schemas live in matconv_fast/_ops; this file registers the CPU implementations and picks the instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <optional>

#include "finish_chunk.h"
#include "kernels.h"

namespace mcf {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum Loss : int64_t { kMse, kSse, kFro };  // the order of LOSSES in matconv_fast/_reference.py

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

const Kernels& active_kernels() {
  static const Kernels& kernels = select_kernels();
  return kernels;
}

const TypedKernels<float>& typed_kernels(float) { return active_kernels().f32; }
const TypedKernels<double>& typed_kernels(double) { return active_kernels().f64; }

template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t elements)
      : data_(static_cast<T*>(::operator new(elements * sizeof(T) + 64, std::align_val_t(64)))) {}
  ~Workspace() { ::operator delete(data_, std::align_val_t(64)); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// Momentum of an entry that has converged decays for ever, and denormal numbers are slow to compute with: N1's 10,000
// iterations took 24 ns each with them and 16 ns without (Zen 3). Numbers under 1.2e-38 (2.2e-308 in float64) become 0.
class FlushDenormals {
#if defined(__x86_64__)
 public:
  FlushDenormals() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(saved_ | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved_); }

 private:
  unsigned saved_;
#else
 public:
  FlushDenormals() {}
#endif
};

template <typename T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}
template <typename T>
T* write(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// The Python side has checked what users can get wrong; this guards the memory that the kernels touch.
void check(const Tensor& t, ScalarType dtype, int64_t first_size, const char* op) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous(), op, ": the CPU kernel takes contiguous CPU tensors");
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.size(0) == first_size, op, ": a tensor has the wrong dtype or batch");
}

// The tensors of one call, as the kernels' arguments.
template <typename T>
struct HeavyBallCall {
  const Tensor &X, &V, &M, &Y, &lr, &momentum, &limit, &threshold, &bail, &sums, &taken;
  T scale;
  bool unit;
  const HeavyBallKernels<T>& kernels = typed_kernels(T()).heavy_ball;
  const int64_t batch = X.size(0), m = X.size(1), n = X.size(2), p = M.size(2), columns = sums.size(1);
  const bool shared = M.size(0) == 1;
  // whole cache lines, so that each of several begins on one
  const int64_t packed = round_up(kernels.packed_elements(n, p));

  bool runs(int64_t b) const { return read<int64_t>(limit)[b] >= 0; }

  HeavyBall<T> problem(int64_t b) const {
    return {write<T>(X) + b * m * n,
            write<T>(V) + b * m * n,
            read<T>(Y) + (Y.size(0) == 1 ? 0 : b * m * p),
            m,
            n,
            p,
            read<T>(lr)[b],
            read<T>(momentum)[b],
            unit,
            std::min(read<int64_t>(limit)[b], columns - 1),
            read<double>(threshold)[b],
            read<double>(bail)[b],
            write<double>(sums) + b * columns};
  }

  void pack(int64_t b, T* out) const { kernels.pack(read<T>(M) + (shared ? 0 : b * n * p), n, p, scale, out); }

  void finish(int64_t b, int64_t updates) const {
    if (runs(b)) write<int64_t>(taken)[b] = updates;
    double* row = write<double>(sums) + b * columns;
    for (int64_t j = runs(b) ? updates + 1 : 0; j < columns; ++j) row[j] = std::numeric_limits<double>::quiet_NaN();
  }

  // One thread a problem, which stops exactly.
  void lockstep() const {
    Workspace<T> common(shared ? packed : 0);
    if (shared) pack(0, common.get());
    const double work = 4.0 * m * n * p * columns + 1000;
    const int64_t grain = static_cast<int64_t>(std::fmax(1.0, 1e5 / work));  // 1e5 operations repay waking a thread
    torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      const FlushDenormals flush;
      Workspace<T> own(shared ? 0 : packed), state(kernels.workspace_elements(m, n, p));
      for (int64_t b = begin; b < end; ++b) {
        int64_t updates = 0;
        if (runs(b)) {
          if (!shared) pack(b, own.get());
          updates = kernels.lockstep(problem(b), shared ? common.get() : own.get(), state.get());
        }
        finish(b, updates);
      }
    });
  }

  // Each slab of rows makes all its iterations by itself; the sums of the slabs are added in their order.
  void alone() const {
    const int64_t slabs = kernels.slabs(m, n, p), matrices = shared ? 1 : batch;
    Workspace<T> packs(matrices * packed);
    Workspace<double> partial(batch * slabs * columns);
    torch::stable::parallel_for(0, matrices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) pack(b, packs.get() + b * packed);
    });
    torch::stable::parallel_for(0, batch * slabs, 1, [&](int64_t begin, int64_t end) {
      const FlushDenormals flush;
      Workspace<T> state(kernels.workspace_elements(m / slabs + 1, n, p));
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / slabs;
        if (!runs(b)) continue;
        HeavyBall<T> q = problem(b);
        q.sums = partial.get() + item * columns;
        kernels.alone(q, item % slabs, packs.get() + (shared ? 0 : b * packed), state.get());
      }
    });
    for (int64_t b = 0; b < batch; ++b) {
      if (!runs(b)) {
        finish(b, 0);
        continue;
      }
      const int64_t updates = problem(b).limit;
      double* row = write<double>(sums) + b * columns;
      for (int64_t j = 0; j <= updates; ++j) {
        row[j] = 0;
        for (int64_t slab = 0; slab < slabs; ++slab) row[j] += partial.get()[(b * slabs + slab) * columns + j];
      }
      finish(b, updates);
    }
  }

  static int64_t round_up(int64_t elements) {
    const int64_t line = 64 / sizeof(T);
    return (elements + line - 1) / line * line;
  }
};

// Contract of `advance`: see matconv_fast/_reference.py.
void heavy_ball_advance(const Tensor X, const Tensor V, const std::optional<Tensor> M, const Tensor Y, const Tensor lr,
                        const Tensor momentum, const Tensor limit, const Tensor threshold, const Tensor bail,
                        const Tensor sums, const Tensor taken, int64_t loss, bool lockstep) {
  constexpr const char* op = "heavy_ball_advance";
  STD_TORCH_CHECK(M.has_value(), op, ": the CPU kernel needs M");
  STD_TORCH_CHECK(loss >= kMse && loss <= kFro, op, ": loss is 0 (mse), 1 (sse) or 2 (fro), got ", loss);
  STD_TORCH_CHECK(lockstep || loss != kFro, op, ": fro couples the rows and runs in lockstep only");
  const int64_t batch = X.size(0);
  const ScalarType dtype = X.scalar_type();
  for (const Tensor* t : {&X, &V, &lr, &momentum}) check(*t, dtype, batch, op);
  for (const Tensor* t : {&*M, &Y}) check(*t, dtype, t->size(0) == 1 ? 1 : batch, op);
  for (const Tensor* t : {&threshold, &bail, &sums}) check(*t, ScalarType::Double, batch, op);
  for (const Tensor* t : {&limit, &taken}) check(*t, ScalarType::Long, batch, op);
  STD_TORCH_CHECK(M->size(1) == X.size(2) && Y.size(1) == X.size(1) && Y.size(2) == M->size(2) &&
                      V.size(1) == X.size(1) && V.size(2) == X.size(2) && sums.size(1) >= 1,
                  op, ": shapes of X, V, M, Y and sums do not fit");
  const double elements = static_cast<double>(Y.size(1)) * Y.size(2);
  const double scale = loss == kFro ? 1.0 : loss == kSse ? 2.0 : elements > 0 ? 2.0 / elements : 0.0;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const HeavyBallCall<T> call{
        X, V, *M, Y, lr, momentum, limit, threshold, bail, sums, taken, static_cast<T>(scale), loss == kFro};
    lockstep ? call.lockstep() : call.alone();
  };
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                  ": the CPU kernel computes in float32 and float64");
  dtype == ScalarType::Float ? run(0.0f) : run(0.0);
}

enum Ord : int64_t { kFrobenius, kMax, kOne };  // the order of ORDS in matconv_fast/_reference.py

// A and B: [m, n] or [batch, m, n] with contiguous rows; the distance of each problem, in their dtype.
template <typename T>
Tensor run_distance(const Tensor& A, const Tensor& B, int64_t ord) {
  const int64_t dim = A.dim(), batch = dim == 3 ? A.size(0) : 1, m = A.size(dim - 2), n = A.size(dim - 1);
  const int64_t A_row = A.stride(dim - 2), B_row = B.stride(dim - 2);
  const bool flat = m <= 1 || (A_row == n && B_row == n);
  const int64_t rows = flat ? 1 : m, columns = flat ? m * n : n;
  // Blocks depend on shape and layout alone, so the sum does not depend on the threads: 32,768 elements, or whole rows.
  constexpr int64_t block = 1 << 15;
  const int64_t rows_in_block = std::max<int64_t>(1, block / std::max<int64_t>(1, columns));
  const int64_t row_blocks = (rows + rows_in_block - 1) / rows_in_block;
  const int64_t column_blocks = std::max<int64_t>(1, (columns + block - 1) / block);
  const int64_t blocks = row_blocks * column_blocks;
  const DistanceKernels<T>& kernels = typed_kernels(T()).distance;
  const auto kernel = ord == kFrobenius ? kernels.squares : ord == kMax ? kernels.largest : kernels.absolute;
  const auto combine = [&](double a, double b) { return ord != kMax ? a + b : a > b || a != a ? a : b; };

  const int64_t shape = batch;
  Tensor result = torch::stable::new_empty(A, {&shape, dim == 3 ? size_t(1) : size_t(0)});
  double few[64];
  Workspace<double> many(batch * blocks > 64 ? batch * blocks : 0);
  double* partial = batch * blocks > 64 ? many.get() : few;
  const auto run_blocks = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / blocks, row0 = item % blocks / column_blocks * rows_in_block;
      const int64_t column0 = item % column_blocks * block;
      const T* a_base = read<T>(A) + (dim == 3 ? b * A.stride(0) : 0) + column0;
      const T* b_base = read<T>(B) + (dim == 3 ? b * B.stride(0) : 0) + column0;
      double value = 0;
      for (int64_t row = row0; row < std::min(rows, row0 + rows_in_block); ++row)
        value = combine(value, kernel(a_base + row * A_row, b_base + row * B_row, std::min(block, columns - column0)));
      partial[item] = value;
    }
  };
  if (batch * blocks == 1)
    run_blocks(0, 1);  // one block is not worth a thread pool's 5 us
  else
    torch::stable::parallel_for(0, batch * blocks, std::max<int64_t>(1, block / std::max<int64_t>(1, m * n)),
                                run_blocks);
  for (int64_t b = 0; b < batch; ++b) {
    double value = 0;
    for (int64_t i = 0; i < blocks; ++i) value = combine(value, partial[b * blocks + i]);
    write<T>(result)[b] = static_cast<T>(ord == kFrobenius ? std::sqrt(value) : value);
  }
  return result;
}

Tensor distance_op(const Tensor A, const Tensor B, int64_t ord) {
  constexpr const char* op = "distance";
  const int64_t dim = A.dim();
  STD_TORCH_CHECK(A.is_cpu() && B.is_cpu() && A.scalar_type() == B.scalar_type() && B.dim() == dim, op,
                  ": the CPU kernel takes two CPU tensors of one dtype");
  STD_TORCH_CHECK(dim == 2 || dim == 3, op, ": the CPU kernel takes [m, n] or [batch, m, n]");
  for (int64_t d = 0; d < dim; ++d) STD_TORCH_CHECK(A.size(d) == B.size(d), op, ": the shapes differ");
  for (const Tensor* t : {&A, &B})
    STD_TORCH_CHECK(t->stride(dim - 1) == 1 || t->size(dim - 1) <= 1, op, ": rows must be contiguous");
  STD_TORCH_CHECK(ord >= kFrobenius && ord <= kOne, op, ": ord is 0 (fro), 1 (max) or 2 (1), got ", ord);
  const ScalarType dtype = A.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                  ": the CPU kernel computes in float32 and float64");
  return dtype == ScalarType::Float ? run_distance<float>(A, B, ord) : run_distance<double>(A, B, ord);
}

void finish_chunk_op(const Tensor sums, const Tensor taken, const Tensor threshold, const Tensor Y_squares,
                     const Tensor bail, const Tensor last, const Tensor best, const Tensor updates, const Tensor status,
                     const Tensor again, const Tensor counts) {
  const int64_t batch = sums.size(0);
  for (const Tensor* t : {&sums, &threshold, &Y_squares, &bail, &last, &best})
    check(*t, ScalarType::Double, batch, "finish_chunk");
  for (const Tensor* t : {&taken, &updates, &status, &again}) check(*t, ScalarType::Long, batch, "finish_chunk");
  check(counts, ScalarType::Long, 2, "finish_chunk");
  finish_chunk({batch, sums.size(1), read<double>(sums), read<int64_t>(taken), read<double>(threshold),
                read<double>(Y_squares), write<double>(bail), write<double>(last), write<double>(best),
                write<int64_t>(updates), write<int64_t>(status), write<int64_t>(again), write<int64_t>(counts)});
}

}  // namespace
}  // namespace mcf

// Read by kernels/cpu/launch.py through ctypes.
extern "C" __attribute__((visibility("default"))) const char* matconv_fast_isa() { return mcf::active_kernels().name; }

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) {
  m.impl("distance", TORCH_BOX(&mcf::distance_op));
  m.impl("finish_chunk", TORCH_BOX(&mcf::finish_chunk_op));
  m.impl("heavy_ball_advance", TORCH_BOX(&mcf::heavy_ball_advance));
}
