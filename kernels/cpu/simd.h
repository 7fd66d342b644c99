// Vector types of the instruction set that the including isa_*.cpp has selected.
//
// Each isa_*.cpp defines MCF_ISA (a namespace) and MCF_VECTOR_BYTES, sets the compiler's target, and includes the
// kernel families. Kernels use no std:: templates: the linker would merge an AVX-512 instantiation with the generic
// one.
#pragma once

#if !defined(MCF_ISA) || !defined(MCF_VECTOR_BYTES)
#error "include the kernel headers through an isa_*.cpp"
#endif

#define MCF_INLINE static inline __attribute__((always_inline))

namespace mcf {
namespace MCF_ISA {

template <typename T>
struct Simd {
  static constexpr int lanes = MCF_VECTOR_BYTES / sizeof(T);
  typedef T Vec __attribute__((vector_size(MCF_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename Simd<T>::Vec;

template <typename T>
MCF_INLINE Vec<T>& at(T* p) {
  return *reinterpret_cast<Vec<T>*>(p);
}

template <typename T>
MCF_INLINE const Vec<T>& at(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

// Sum of the lanes, always in the same order.
template <typename V>
MCF_INLINE double lane_sum(const V& v, int lanes) {
  double sum = 0;
  for (int l = 0; l < lanes; ++l) sum += static_cast<double>(v[l]);
  return sum;
}

}  // namespace MCF_ISA
}  // namespace mcf
