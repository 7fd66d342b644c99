// What the bindings share: memory, checks, threads, and the kernels of the selected instruction set.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "contract.h"
#include "kernels.h"

namespace mcf {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& active_kernels();

inline const TypedKernels<float>& typed_kernels(float) { return active_kernels().f32; }
inline const TypedKernels<double>& typed_kernels(double) { return active_kernels().f64; }

template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t elements)
      : data_(elements ? static_cast<T*>(::operator new(elements * sizeof(T) + 64, std::align_val_t(64))) : nullptr) {}
  ~Workspace() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// The momentum of a converged entry decays for ever, and denormal numbers are slow to compute with: each of N1's 10,000
// iterations took 24 ns with them and 16 ns without (Zen 3). Numbers below 1.2e-38 (2.2e-308 in float64) become 0.
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

// The dtype as libtorch codes it. Comparing codes takes a few nanoseconds, scalar_type() some fifteen.
inline int32_t dtype_code(const Tensor& t) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  return code;
}

// Python has checked what users can get wrong; this guards the memory that the kernels access.
inline void check(const Tensor& t, ScalarType dtype, int64_t first_size, const char* op) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous(), op, ": the CPU kernel takes contiguous CPU tensors");
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.dim() > 0 && t.size(0) == first_size, op,
                  ": a tensor has the wrong dtype or batch");
}

// "X Float [3, 4]", for errors.
inline std::string describe(const char* name, const Tensor& t) {
  std::string text = std::string(name) + " " + torch::headeronly::toString(t.scalar_type()) + " [";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + (t.is_cpu() ? "]" : "] on another device");
}
inline std::string describe(const char* name, const std::optional<Tensor>& t) {
  return t.has_value() ? describe(name, *t) : std::string(name) + " None";
}

// The tensor itself, or a contiguous copy.
inline Tensor readable(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline std::optional<Tensor> readable(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(readable(*t)) : t;
}

// A tensor that a kernel updates: itself where it is contiguous, else a copy that `put_back` writes to it.
class Updated {
 public:
  explicit Updated(const Tensor& t) : target_(t), memory_(readable(t)) {}
  const Tensor& get() const { return memory_; }
  void put_back() {
    if (!target_.is_contiguous()) torch::stable::copy_(target_, memory_);
  }

 private:
  Tensor target_, memory_;
};

// A contiguous tensor on the CPU, of the dtype of `like`. new_empty takes 2 us more.
inline Tensor empty_like(const Tensor& like, const int64_t* sizes, int64_t dims) {
  std::vector<int64_t> strides(dims, 1);
  for (int64_t d = dims - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides.data(), dtype_code(like),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// A tensor for one value per problem: no dimension for one problem, [size] for a batch.
inline Tensor empty_values(const Tensor& like, bool batched, int64_t size) { return empty_like(like, &size, batched); }

inline int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

// Calls f(begin, end) for parts of [0, size), on the calling thread where there is only one.
template <typename F>
void for_range(int64_t size, int64_t grain, const F& f) {
  if (size <= 1)
    f(int64_t(0), size);
  else
    torch::stable::parallel_for(0, size, grain, f);
}

// Calls f(queue of the items [0, size)) on one thread for each `grain` items.
template <typename F>
void share(int64_t size, int64_t grain, const F& f) {
  Queue queue{size};
  const int64_t count = std::min<int64_t>(threads(), parts_of(size, grain));
  for_range(count, 1, [&](int64_t, int64_t) { f(queue); });
}

// Elements in one block of a pass over memory. Blocks are fixed, so that the order of sums is independent of threads.
constexpr int64_t kSweep = 1 << 15;

// Whole rows in one block: at least one.
inline int64_t rows_in_block(int64_t columns) { return std::max<int64_t>(1, kSweep / std::max<int64_t>(1, columns)); }

// Operations that repay waking a thread.
constexpr double kWaking = 1e5;

// Calls f(i) for blocks 0 .. blocks - 1, on all threads; the sum of what it returns, added in the blocks' order.
template <typename F>
double sum_of_blocks(int64_t blocks, const F& f) {
  Workspace<double> partial(blocks);
  for_range(blocks, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    for (int64_t i = begin; i < end; ++i) partial.get()[i] = f(i);
  });
  double sum = 0;
  for (int64_t i = 0; i < blocks; ++i) sum += partial.get()[i];
  return sum;
}

// Y where none is given.
template <typename T>
void fill_identity(T* Y, int64_t m, int64_t p) {
  for (int64_t k = 0; k < m * p; ++k) Y[k] = k / p == k % p;
}

// The factor c of the gradient c R M^T; under fro it is divided by ||R||.
inline double gradient_scale(int64_t loss, double elements) {
  return loss == kLossFro ? 1.0 : loss == kLossSse ? 2.0 : elements > 0 ? 2.0 / elements : 0.0;
}

inline double loss_of(double sum, int64_t loss, double elements) {
  return loss == kLossMse ? sum / std::fmax(elements, 1) : loss == kLossSse ? sum : std::sqrt(sum);
}

// Calls f with a zero of the dtype.
template <typename F>
void with_dtype(ScalarType dtype, const char* op, const F& f) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                  ": the CPU kernel computes in float32 and float64");
  dtype == ScalarType::Float ? f(0.0f) : f(0.0);
}

}  // namespace mcf
