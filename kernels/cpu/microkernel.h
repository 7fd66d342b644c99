// The product that the kernels are built from: a few rows of A times one packed panel of B, accumulated in registers.
#pragma once

#include <cstdint>

#include "simd.h"

namespace mcf {
namespace MCF_ISA {

// Rows of the largest register block of NV vectors: 8 x 1 or 6 x 2 accumulators of AVX2's 16 registers, 12 x 2 of
// AVX-512's 32. Twelve rows of one vector take as long on AVX2, and a fifth more to compile.
constexpr int max_rows(int NV) { return MCF_VECTOR_BYTES == 64 ? 12 : NV == 1 ? 8 : 6; }

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Vectors in one panel: two, or one where a single vector holds every column.
template <typename T>
constexpr int panel_vectors(int64_t columns) {
  return columns <= Simd<T>::lanes ? 1 : 2;
}

template <typename T>
constexpr int64_t padded(int64_t columns) {
  return round_up(columns, panel_vectors<T>(columns) * Simd<T>::lanes);
}

// Number of panels that hold these columns.
template <typename T>
constexpr int64_t panels(int64_t columns) {
  return padded<T>(columns) / (panel_vectors<T>(columns) * Simd<T>::lanes);
}

// Some of the panels [k, panel width], padded with zeros, of B [k, columns], whose element (q, j) is at
// B[q * row_stride + j * column_stride]. A transposed B is read by cache lines: read by single elements, the lines of a
// panel's columns, a power of two apart, would evict each other.
template <typename T>
MCF_INLINE void pack(const T* B, int64_t k, int64_t columns, int64_t row_stride, int64_t column_stride, T scale, T* out,
                     int64_t begin, int64_t end) {
  const int64_t width = panel_vectors<T>(columns) * Simd<T>::lanes;
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t c = begin; c < end; ++c) {
    T* panel = out + c * width * k;
    const T* first = B + c * width * column_stride;
    const int64_t filled = columns - c * width < width ? columns - c * width : width;
    const auto element = [&](int64_t q, int64_t j) {
      panel[q * width + j] = j < filled ? scale * first[q * row_stride + j * column_stride] : T(0);
    };
    if (column_stride == 1) {
      for (int64_t q = 0; q < k; ++q)
        for (int64_t j = 0; j < width; ++j) element(q, j);
    } else {
      for (int64_t q0 = 0; q0 < k; q0 += line)
        for (int64_t j = 0; j < width; ++j)
          for (int64_t q = q0; q < k && q < q0 + line; ++q) element(q, j);
    }
  }
}

// acc[i] += A[i, :] @ panel for R rows of A, whose element (i, q) is at A[i * row_stride + q * column_stride].
template <typename T, int R, int NV>
MCF_INLINE void multiply_panel(const T* A, int64_t row_stride, int64_t column_stride, const T* panel, int64_t k,
                               Vec<T> (&acc)[R][NV]) {
  constexpr int lanes = Simd<T>::lanes;
  for (int64_t q = 0; q < k; ++q) {
    Vec<T> b[NV];
    for (int h = 0; h < NV; ++h) b[h] = at(panel + (q * NV + h) * lanes);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const Vec<T> a =
          A[i * row_stride + q * column_stride] - Vec<T>{};  // one broadcasting load; 0 + a would be an addition
      for (int h = 0; h < NV; ++h) acc[i][h] += a * b[h];
    }
  }
}

// Calls f(integral constant of `rows`): the kernels are instantiated for each number of rows.
template <int R>
struct RowCount {
  static constexpr int value = R;
};

template <int R, typename F>
MCF_INLINE void with_rows(int rows, const F& f) {
  if constexpr (R > 0) {
    if (rows == R)
      f(RowCount<R>{});
    else
      with_rows<R - 1>(rows, f);
  }
}

}  // namespace MCF_ISA
}  // namespace mcf
