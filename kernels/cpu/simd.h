// Vector types of the instruction set that the including isa_*.cpp selects.
//
// Each isa_*.cpp defines MCF_ISA (a namespace) and MCF_VECTOR_BYTES, sets the compiler's target, and includes the
// kernel families. Kernels use no std:: templates: the linker would merge an AVX-512 instantiation with the generic
// one.
#pragma once

#if !defined(MCF_ISA) || !defined(MCF_VECTOR_BYTES)
#error "include the kernel headers through an isa_*.cpp"
#endif

#define MCF_INLINE static inline __attribute__((always_inline))
#define MCF_INLINE_MEMBER inline __attribute__((always_inline))

namespace mcf {
namespace MCF_ISA {

template <typename T>
struct Bare {
  typedef T Type;
};
template <typename T>
struct Bare<T&> : Bare<T> {};
template <typename T>
struct Bare<T&&> : Bare<T> {};
template <typename T>
struct Bare<const T> : Bare<T> {};

template <typename T, int lanes>
struct Vector {
  typedef T Type __attribute__((vector_size(lanes * sizeof(T))));
};

template <typename T>
struct Simd {
  static constexpr int lanes = MCF_VECTOR_BYTES / sizeof(T);
  using Vec = typename Vector<T, lanes>::Type;
};

template <typename T>
using Vec = typename Simd<T>::Vec;

// An element of a vector.
template <typename V>
struct ElementOf {
  typedef typename Bare<decltype(V{}[0])>::Type Type;
};
template <typename T>
MCF_INLINE Vec<T>& at(T* p) {
  return *reinterpret_cast<Vec<T>*>(p);
}

template <typename T>
MCF_INLINE const Vec<T>& at(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

// GCC 12 compiles __builtin_convertvector to two halves and a join, and does not always join conversions by element.
template <typename V>
MCF_INLINE auto in_float64(const V& v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  typedef typename Vector<double, lanes>::Type Wide;
  if constexpr (sizeof(v[0]) == 8) return v;
#if MCF_VECTOR_BYTES == 32 && !defined(__clang__)
  else if constexpr (lanes == 4)
    return Wide(__builtin_ia32_cvtps2pd256(v));
#endif
  else if constexpr (lanes == 2)
    return Wide{v[0], v[1]};
  else if constexpr (lanes == 4)
    return Wide{v[0], v[1], v[2], v[3]};
  else
    return Wide{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
}

// A sum in float64 of vectors of any type. The lanes are added in a fixed order.
template <typename T, int lanes>
struct WideSum {
  static constexpr int parts = static_cast<int>(8 / sizeof(T));
  static constexpr int width = lanes / parts;  // doubles in a part, as many bytes as the vector itself
  using Narrow = typename Vector<T, width>::Type;
  using Wide = typename Vector<double, width>::Type;
  Wide sums[parts] = {};

  template <typename V>
  static MCF_INLINE_MEMBER Wide widen(const V& v, int part) {
    Narrow n;
    __builtin_memcpy(&n, reinterpret_cast<const char*>(&v) + part * sizeof(n), sizeof(n));
    return in_float64(n);
  }
  template <typename V>
  MCF_INLINE_MEMBER void add(const V& v) {
    for (int part = 0; part < parts; ++part) sums[part] += widen(v, part);
  }
  template <typename V>
  MCF_INLINE_MEMBER void add_square(const V& v) {
    for (int part = 0; part < parts; ++part) {
      const Wide wide = widen(v, part);
      sums[part] += wide * wide;
    }
  }
  MCF_INLINE_MEMBER void lanes_into(double (&totals)[lanes]) const {
    for (int l = 0; l < lanes; ++l) totals[l] = sums[l / width][l % width];
  }
  MCF_INLINE_MEMBER double total() const {
    Wide all = sums[0];
    for (int part = 1; part < parts; ++part) all += sums[part];
    double sum = 0;
    for (int l = 0; l < width; ++l) sum += all[l];
    return sum;
  }
};

template <typename T>
using Sum = WideSum<T, Simd<T>::lanes>;

// A dozen squares are added in T before the sum continues in float64, which saves 12 to 22 % of a product's time at 16
// to 256 columns. In float32 the square of 1e-20 is 0, and a sum of 0 would count as a solved equation. So where the
// total is not safe, the caller of `squares` repeats the sum with each square in float64. Where it is safe, the squares
// lost to underflow are less than 1e-8 of it. A total is not safe either where the padding may be NaN, a zero times an
// infinity.
template <typename T>
MCF_INLINE bool safe_total(double total) {
  return sizeof(T) == 8 ? total <= 1.7e308 : total >= 1e-25 && total <= 1e37;
}

template <typename T, int R, int NV>
MCF_INLINE Vec<T> squares(const Vec<T> (&v)[R][NV]) {
  Vec<T> sums[NV];
  for (int h = 0; h < NV; ++h) sums[h] = v[0][h] * v[0][h];
  for (int i = 1; i < R; ++i)
    for (int h = 0; h < NV; ++h) sums[h] += v[i][h] * v[i][h];
  for (int h = 1; h < NV; ++h) sums[0] += sums[h];
  return sums[0];
}

}  // namespace MCF_ISA
}  // namespace mcf
