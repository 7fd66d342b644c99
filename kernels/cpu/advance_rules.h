// What an update does with the gradient, a vector at a time.
#pragma once

#include "advance.h"
#include "simd.h"

namespace mcf {
namespace MCF_ISA {

template <typename T>
struct HeavyBall {
  static constexpr int buffers = 1;  // v
  T lr, momentum;

  explicit HeavyBall(const Descent<T>& q) : lr(q.lr), momentum(q.momentum) {}
  void begin(int64_t) {}
  MCF_INLINE_MEMBER Vec<T> start(const T* v) const { return momentum * at(v); }
  MCF_INLINE_MEMBER void finish(const Vec<T>& acc, T* x, T* v) const {
    at(v) = acc;
    at(x) -= lr * acc;
  }
};

template <typename T>
MCF_INLINE Vec<T> root(const Vec<T>& v) {
  Vec<T> roots = {};
  for (int l = 0; l < Simd<T>::lanes; ++l) roots[l] = sizeof(T) == 4 ? __builtin_sqrtf(v[l]) : __builtin_sqrt(v[l]);
  return roots;
}

template <typename T>
struct Adam {
  static constexpr int buffers = 3;  // v, s, and the gradient
  T rate, floor;
  T first_rest, second_decay, second_rest;  // the rest is 1 - decay, which loses digits in T
  const Descent<T>& q;

  explicit Adam(const Descent<T>& q)
      : first_rest(static_cast<T>(1 - q.first_decay)),
        second_decay(static_cast<T>(q.second_decay)),
        second_rest(static_cast<T>(1 - q.second_decay)),
        q(q) {}
  // lr (first / c1) / (sqrt(second / c2) + eps), with the corrections c = 1 - decay^count moved to lr and eps
  void begin(int64_t j) {
    const double count = q.made + static_cast<double>(j + 1);
    const double c1 = 1 - __builtin_pow(q.first_decay, count), c2 = 1 - __builtin_pow(q.second_decay, count);
    rate = static_cast<T>(q.lr * __builtin_sqrt(c2) / c1);
    floor = static_cast<T>(q.eps * __builtin_sqrt(c2));
  }
  MCF_INLINE_MEMBER void update(const Vec<T>& gradient, T* x, T* v, T* s) const {
    const Vec<T> first = at(v) + first_rest * (gradient - at(v));
    const Vec<T> second = second_decay * at(s) + second_rest * gradient * gradient;
    at(v) = first, at(s) = second;
    at(x) -= rate * first / (root<T>(second) + floor);
  }
};

}  // namespace MCF_ISA
}  // namespace mcf
