// See loss.h.
#pragma once

#include "advance_rows.h"
#include "loss.h"

namespace mcf {
namespace MCF_ISA {

template <typename T>
int64_t loss_elements(int64_t m, int64_t n, int64_t p) {
  return RowState<T>::elements(m, n, p, 0) + m * row_stride<T>(n) + panels_elements<T>(n, p) + (m + n) * padded<T>(p) +
         m * n;
}

template <typename T>
double loss_residual(const ResidualProducts<T>& q, T* work) {
  Descent<T> d = {};
  d.X = const_cast<T*>(q.X), d.M = q.M, d.Y = q.Y, d.product = q.product, d.m = q.m, d.n = q.n, d.p = q.p;
  const RowState<T> s(q.m, q.n, q.p, 0, work);
  s.load(d, Rows{0, q.m});
  T* gradient = work + s.elements(q.m, q.n, q.p, 0);
  T* packed = gradient + q.m * s.n_stride;
  T* R_panels = packed + panels_elements<T>(q.n, q.p);
  T* products = R_panels + q.m * padded<T>(q.p);
  T* Xt = products + q.n * padded<T>(q.p);
  if (q.product) pack_panels(q.M, q.n, q.p, T(1), packed, q.R_Mt != nullptr, 0, 1);
  const double sum = residual_slab(s, d, packed);
  if (q.R) copy_rows<T>(s.r, s.p_stride, q.R, q.p, q.m, q.p);
  if (q.R_Mt && q.product) {
    product(s.r, s.p_stride, q.m, q.p, packed + q.n * padded<T>(q.p), q.n, gradient, s.n_stride);
    copy_rows<T>(gradient, s.n_stride, q.R_Mt, q.n, q.m, q.n);
  }
  if (q.R_Mt && !q.product) copy_rows<T>(s.r, s.p_stride, q.R_Mt, q.p, q.m, q.p);
  if (q.Xt_R) {
    for (int64_t i = 0; i < q.m; ++i)
      for (int64_t j = 0; j < q.n; ++j) Xt[j * q.m + i] = q.X[i * q.n + j];
    pack(s.r, q.m, q.p, s.p_stride, 1, T(1), R_panels, 0, panels<T>(q.p));
    product(Xt, q.m, q.n, q.m, R_panels, q.p, products, padded<T>(q.p));
    copy_rows<T>(products, padded<T>(q.p), q.Xt_R, q.p, q.n, q.p);
  }
  return sum;
}

}  // namespace MCF_ISA
}  // namespace mcf
