// The update rules: what each does with the gradient G. To add a rule, add a struct and its line in MCF_RULES.
//
//   heavy ball:  V = momentum V + G;  X = X - lr V
//   Nesterov:    V = momentum V + G;  X = X - lr (G + momentum V)
//   Adam:        first = b1 first + (1 - b1) G;  second = b2 second + (1 - b2) G^2;
//                X = X - rate first / (sqrt(second) + floor)
#pragma once

#include "advance.h"
#include "simd.h"

// RULE(name of the rule in Python, its struct)
#ifndef MCF_RULES  // the sanitizers are given fewer
#define MCF_RULES(RULE)       \
  RULE(heavy_ball, HeavyBall) \
  RULE(nesterov, Nesterov)    \
  RULE(adam, Adam)
#endif

namespace mcf {
namespace MCF_ISA {

// A rule is a struct template over V, a vector of values, and C, the type of its coefficients: a scalar where a vector
// belongs to one problem, V where each lane is a problem of its own. It has these members; the ones with defaults are
// inherited.
//
//   states, hypers     matrices besides X; hyperparameters
//   begin(hyper, step, lane)
//                      computes the coefficients of a problem for its update number `step` (1 is the first), and puts
//                      them in place with set_lane; called once a run, or before each update if `depends_on_step`
//   finish(G, x, state)
//                      updates a vector of X and of each state
//   accumulates        state[0] becomes decay() * state[0] + G. Then the product R M^T is added to decay() * state[0]
//                      directly, and `finish` receives that sum in place of G
//   keeps_zeros        X stays 0 where X, the states and G are 0; otherwise the padding of X is set to 0 after each
//   update
struct RuleDefaults {
  static constexpr bool accumulates = false, depends_on_step = false, keeps_zeros = true;
};

MCF_INLINE void set_lane(float& coefficient, int, double value) { coefficient = static_cast<float>(value); }
MCF_INLINE void set_lane(double& coefficient, int, double value) { coefficient = value; }
template <typename C>
MCF_INLINE void set_lane(C& coefficient, int lane, double value) {
  coefficient[lane] = value;
}

template <typename V>
MCF_INLINE V root(const V& v) {
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(v[0]));
  V roots = {};
  for (int l = 0; l < lanes; ++l) roots[l] = sizeof(v[0]) == 4 ? __builtin_sqrtf(v[l]) : __builtin_sqrt(v[l]);
  return roots;
}

template <typename V, typename C>
struct HeavyBall : RuleDefaults {
  static constexpr int states = 1, hypers = 2;  // V; lr, momentum
  static constexpr bool accumulates = true;
  C lr, momentum;

  MCF_INLINE_MEMBER void begin(const Hyper& hyper, int64_t, int lane) {
    set_lane(lr, lane, hyper[0]), set_lane(momentum, lane, hyper[1]);
  }
  MCF_INLINE_MEMBER C decay() const { return momentum; }
  MCF_INLINE_MEMBER void finish(const V& velocity, V& x, V (&state)[states]) const {
    state[0] = velocity;
    x -= lr * velocity;
  }
};

template <typename V, typename C>
struct Nesterov : RuleDefaults {
  static constexpr int states = 1, hypers = 2;  // V; lr, momentum
  C lr, momentum;

  MCF_INLINE_MEMBER void begin(const Hyper& hyper, int64_t, int lane) {
    set_lane(lr, lane, hyper[0]), set_lane(momentum, lane, hyper[1]);
  }
  MCF_INLINE_MEMBER void finish(const V& G, V& x, V (&state)[states]) const {
    state[0] = momentum * state[0] + G;
    x -= lr * (G + momentum * state[0]);
  }
};

template <typename V, typename C>
struct Adam : RuleDefaults {
  static constexpr int states = 2, hypers = 4;  // first and second moment; lr, b1, b2, eps
  static constexpr bool depends_on_step = true;
  static constexpr bool keeps_zeros = false;             // with eps = 0 it is 0 / 0
  C rate, floor, first_rest, second_decay, second_rest;  // the rest is 1 - decay, which loses digits in float32

  // lr (first / c1) / (sqrt(second / c2) + eps), with the bias corrections c = 1 - b^step moved into rate and floor
  MCF_INLINE_MEMBER void begin(const Hyper& hyper, int64_t step, int lane) {
    const double b1 = hyper[1], b2 = hyper[2], count = static_cast<double>(step);
    const double c1 = 1 - __builtin_pow(b1, count), root_c2 = __builtin_sqrt(1 - __builtin_pow(b2, count));
    set_lane(rate, lane, hyper[0] * root_c2 / c1), set_lane(floor, lane, hyper[3] * root_c2);
    set_lane(first_rest, lane, 1 - b1), set_lane(second_decay, lane, b2), set_lane(second_rest, lane, 1 - b2);
  }
  MCF_INLINE_MEMBER void finish(const V& G, V& x, V (&state)[states]) const {
    state[0] += first_rest * (G - state[0]);
    state[1] = second_decay * state[1] + second_rest * G * G;
    x -= rate * state[0] / (root(state[1]) + floor);
  }
};

// What every algorithm calls.

// The accumulator that the product R M^T starts from.
template <class Rule, typename V>
MCF_INLINE V start(const Rule& rule, const V& first_state) {
  if constexpr (Rule::accumulates)
    return rule.decay() * first_state;
  else
    return V{};
}

// Finishes the vector at x, whose states lie one pitch, two pitches, ... of vectors behind it.
template <class Rule, typename V>
MCF_INLINE void finish_at(const Rule& rule, const V& acc, V* x, int64_t pitch) {
  V state[Rule::states];
#pragma GCC unroll 4
  for (int k = 0; k < Rule::states; ++k) state[k] = x[(k + 1) * pitch];
  rule.finish(acc, *x, state);
#pragma GCC unroll 4
  for (int k = 0; k < Rule::states; ++k) x[(k + 1) * pitch] = state[k];
}

// Before a run, and before its update j: each computes the coefficients where they are due.
template <class Rule, typename T>
MCF_INLINE void begin_run(Rule& rule, const Descent<T>& problem, int lane = 0) {
  if constexpr (!Rule::depends_on_step) rule.begin(problem.hyper, problem.step + 1, lane);
}
template <class Rule, typename T>
MCF_INLINE void begin_step(Rule& rule, const Descent<T>& problem, int64_t j, int lane = 0) {
  if constexpr (Rule::depends_on_step) rule.begin(problem.hyper, problem.step + 1 + j, lane);
}

}  // namespace MCF_ISA
}  // namespace mcf
