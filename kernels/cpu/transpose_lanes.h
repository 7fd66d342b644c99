// Problems in memory to one problem a lane, and back: small blocks of elements are transposed in registers.
#pragma once

#include "simd.h"

namespace mcf {
namespace MCF_ISA {

// 0, 1, ... n - 1 as a parameter pack of All.
template <int n, int... rest>
struct Count : Count<n - 1, n - 1, rest...> {};
template <int... k>
struct Count<0, k...> {
  typedef Count All;
};

// Lanes of a and b, numbered one after the other, as a vector of type To.
template <typename To, typename V, int... l>
MCF_INLINE To lanes_of(const V& a, const V& b, Count<0, l...>) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, l...);
#else
  constexpr int lanes = sizeof(V) / sizeof(a[0]);
  return To{(l < lanes ? a[l % lanes] : b[l % lanes])...};
#endif
}

// Swaps the lanes l + step of a with the lanes l of b, where l has no bit `step`.
template <int step, typename V, int... l>
MCF_INLINE void exchange(V& a, V& b, Count<0, l...>) {
  constexpr int lanes = sizeof...(l);
  const V c = a, d = b;
  a = lanes_of<V>(c, d, Count<0, ((l & step) ? lanes + l - step : l)...>());
  b = lanes_of<V>(c, d, Count<0, ((l & step) ? lanes + l : l + step)...>());
}

// Lanes of a block, and elements that a block takes of each.
template <typename E>
constexpr int block_size = Simd<E>::lanes < 4 ? Simd<E>::lanes : 4;

// In each block of lanes, lane i of v[j] and lane j of v[i] change places.
template <typename E>
MCF_INLINE void transpose_blocks(Vec<E> (&v)[block_size<E>]) {
  constexpr int B = block_size<E>;
  typename Count<Simd<E>::lanes>::All lanes;
  for (int i = 0; i < B; i += 2) exchange<1>(v[i], v[i + 1], lanes);
  if constexpr (B == 4)
    for (int i = 0; i < 2; ++i) exchange<2>(v[i], v[i + 2], lanes);
}

// B elements from p on, and the same after every B lanes: those of the problems that lie B further.
template <typename E, int W, int B, typename T>
MCF_INLINE typename Vector<E, W>::Type load_pieces(const T* const* from, int64_t offset) {
  typedef typename Vector<E, W>::Type To;
  if constexpr (W == B) {
    typename Vector<T, B>::Type piece;
    __builtin_memcpy(&piece, *from + offset, sizeof(piece));
    if constexpr (sizeof(E) == 8)
      return in_float64(piece);
    else
      return piece;
  } else {
    return lanes_of<To>(load_pieces<E, W / 2, B>(from, offset), load_pieces<E, W / 2, B>(from + W / 2, offset),
                        typename Count<W>::All());
  }
}

template <int first, typename To, typename V, int... l>
MCF_INLINE To some_lanes(const V& v, Count<0, l...>) {
  return lanes_of<To>(v, v, Count<0, (first + l)...>());
}

// The counterpart of load_pieces.
template <typename E, int B, int first = 0, typename T>
MCF_INLINE void store_pieces(const Vec<E>& v, T* const* to, int64_t offset) {
  typedef typename Vector<E, B>::Type Piece;
  const auto piece =
      __builtin_convertvector((some_lanes<first, Piece>(v, typename Count<B>::All())), typename Vector<T, B>::Type);
  __builtin_memcpy(*to + offset, &piece, sizeof(piece));
  if constexpr (first + B < Simd<E>::lanes) store_pieces<E, B, first + B>(v, to + B, offset);
}

// Calls f(k, element k of the array of each lane) for k in [0, count).
template <typename E, typename T, typename F>
MCF_INLINE void gather(const T* const (&from)[Simd<E>::lanes], int64_t count, const F& f) {
  constexpr int lanes = Simd<E>::lanes, B = block_size<E>;
  const int64_t whole = count / B * B;
  for (int64_t k = 0; k < whole; k += B) {
    Vec<E> v[B];
    for (int i = 0; i < B; ++i) v[i] = load_pieces<E, lanes, B>(from + i, k);
    transpose_blocks<E>(v);
    for (int i = 0; i < B; ++i) f(k + i, v[i]);
  }
  for (int64_t k = whole; k < count; ++k) {
    Vec<E> v;
    for (int l = 0; l < lanes; ++l) v[l] = static_cast<E>(from[l][k]);
    f(k, v);
  }
}

// Element k of the array of each lane becomes from[k * stride].
template <typename E, typename T>
MCF_INLINE void scatter(const Vec<E>* from, int64_t stride, int64_t count, T* const (&to)[Simd<E>::lanes]) {
  constexpr int lanes = Simd<E>::lanes, B = block_size<E>;
  const int64_t whole = count / B * B;
  for (int64_t k = 0; k < whole; k += B) {
    Vec<E> v[B];
    for (int i = 0; i < B; ++i) v[i] = from[(k + i) * stride];
    transpose_blocks<E>(v);
    for (int i = 0; i < B; ++i) store_pieces<E, B>(v[i], to + i, k);
  }
  for (int64_t k = whole; k < count; ++k)
    for (int l = 0; l < lanes; ++l) to[l][k] = static_cast<T>(from[k * stride][l]);
}

// Part p of a vector, of as many lanes as a vector of doubles has, in float64.
template <int p, typename V>
MCF_INLINE Vec<double> widened(const V& v) {
  constexpr int lanes = Simd<double>::lanes;
  typedef typename Vector<typename ElementOf<V>::Type, lanes>::Type Part;
  return in_float64(some_lanes<p * lanes, Part>(v, typename Count<lanes>::All()));
}

// As T represents it.
template <typename T, typename V>
MCF_INLINE V rounded(const V& v) {
  if constexpr (sizeof(T) == sizeof(v[0]))
    return v;
  else
    return in_float64(__builtin_convertvector(v, typename Vector<T, sizeof(V) / sizeof(v[0])>::Type));
}

template <typename M>
MCF_INLINE bool any_lane(const M& mask) {
#if MCF_VECTOR_BYTES == 32 && !defined(__clang__)
  return __builtin_ia32_movmskps256((typename Vector<float, 8>::Type)mask) != 0;
#else
  typename Vector<long long, sizeof(M) / 8>::Type words;
  __builtin_memcpy(&words, &mask, sizeof(M));
  long long all = 0;
  for (unsigned l = 0; l < sizeof(M) / 8; ++l) all |= words[l];
  return all != 0;
#endif
}

}  // namespace MCF_ISA
}  // namespace mcf
