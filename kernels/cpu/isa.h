// The body of an isa_*.cpp: every kernel family, compiled for MCF_ISA, and the table of them.
#include "advance_lanes.h"
#include "advance_slab.h"
#include "direct_lanes.h"
#include "direct_rows.h"
#include "distance_impl.h"
#include "kernels.h"
#include "loss_impl.h"
#include "sweep_impl.h"

#define MCF_JOIN_(a, b) a##b
#define MCF_JOIN(a, b) MCF_JOIN_(a, b)
#define MCF_QUOTE_(a) #a
#define MCF_QUOTE(a) MCF_QUOTE_(a)

namespace mcf {
namespace MCF_ISA {

template <typename T, template <typename, typename> class RuleOf>
constexpr RuleKernels<T> rule_kernels(const char* name) {
  typedef RuleOf<Vec<T>, T> Rule;
  static_assert(Rule::states >= 1 && Rule::states <= kMaxStates, "raise kMaxStates in advance.h");
  return {name,
          Rule::states,
          Rule::hypers,
          Rule::accumulates,
          {{tiny<T, RuleOf>, nullptr},
           {small_whole<T, Rule>, small_slab<T, Rule>},
           {iterate_whole<T, RowState<T>, Rule>, iterate_slab<T, RowState<T>, Rule>},
           {iterate_whole<T, BlockState<T>, Rule>, iterate_slab<T, BlockState<T>, Rule>}},
          lanes<T, RuleOf>,
          decay_of<T, RuleOf>,
          sweep_rule<T, RuleOf>};
}

#define MCF_RULE(name, Struct) rule_kernels<T, Struct>(#name),
template <typename T>
constexpr RuleKernels<T> rule_table[] = {MCF_RULES(MCF_RULE)};
#undef MCF_RULE

template <typename T>
constexpr TypedKernels<T> typed_kernels() {
  return {{{{one_slab, all_rows, no_packed, no_workspace, no_pack<T>},
            {slabs<BlockState<T>>, rows_of<BlockState<T>>, no_packed, no_workspace, no_pack<T>},
            layout<T, RowState<T>>(),
            layout<T, BlockState<T>>()},
           lanes_elements<T>,
           rule_table<T>,
           sizeof(rule_table<T>) / sizeof(rule_table<T>[0])},
          {distance_squares<T>, distance_absolute<T>, distance_largest<T>},
          {loss_elements<T>, loss_residual<T>},
          {sweep_residual<T>},
          {{direct_lanes_elements<T>, direct_lanes<T>}, {direct_rows_elements, direct_rows<T>}}};
}

}  // namespace MCF_ISA

const Kernels& MCF_JOIN(MCF_ISA, _kernels)() {
  static constexpr Kernels table{MCF_QUOTE(MCF_ISA), MCF_VECTOR_BYTES, MCF_ISA::typed_kernels<float>(),
                                 MCF_ISA::typed_kernels<double>()};
  return table;
}

}  // namespace mcf
