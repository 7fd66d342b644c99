// The extension as Python finds it through ctypes: instruction set, rules, algorithms, and their choice. The operators
// are in the other bindings_*.cpp, built against libtorch's stable ABI: one build serves every torch from 2.10 on.
// Schemas are in matconv_fast/_ops.
#include "bindings.h"

#include <cstdlib>
#include <cstring>

#include "choose_algorithm.h"

namespace mcf {
namespace {

// The best instruction set of the processor, no better than MATCONV_FAST_ISA where that is set.
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

}  // namespace

const Kernels& active_kernels() {
  static const Kernels& kernels = select_kernels();
  return kernels;
}

namespace {

// "name\n" for each rule, and "name keeps_residual least_steps\n" for each algorithm.
std::string list_rules() {
  const AdvanceKernels<float>& kernels = active_kernels().f32.advance;
  std::string text;
  for (int i = 0; i < kernels.rule_count; ++i) text += std::string(kernels.rules[i].name) + "\n";
  return text;
}
std::string list_algorithms() {
  std::string text;
  for (const AlgorithmInfo& a : kAlgorithms)
    text += std::string(a.name) + (a.keeps_residual ? " 1 " : " 0 ") + std::to_string(a.least_steps) + "\n";
  return text;
}

}  // namespace
}  // namespace mcf

// Called by kernels/cpu/launch.py.
#define MCF_EXPORT extern "C" __attribute__((visibility("default")))

MCF_EXPORT const char* matconv_fast_isa() { return mcf::active_kernels().name; }

MCF_EXPORT const char* matconv_fast_rules() {
  static const std::string text = mcf::list_rules();
  return text.c_str();
}

MCF_EXPORT const char* matconv_fast_algorithms() {
  static const std::string text = mcf::list_algorithms();
  return text.c_str();
}

// The index of the algorithm, in the order of matconv_fast_algorithms.
MCF_EXPORT int matconv_fast_choose(int64_t batch, int64_t m, int64_t n, int64_t p, int product, int coupled,
                                   int itemsize) {
  const mcf::Machine machine = {mcf::active_kernels().vector_bytes, itemsize, mcf::threads()};
  return static_cast<int>(mcf::choose_algorithm({m, n, p, product != 0, coupled != 0}, batch, machine));
}
