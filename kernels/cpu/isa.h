// The body of an isa_*.cpp: every kernel family, compiled for MCF_ISA, and the table of them.
#include "advance_lanes.h"
#include "advance_slab.h"
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

template <typename T>
constexpr TypedKernels<T> typed_kernels() {
  return {{slabs<T>, rows_of<T>, packed_elements<T>, workspace_elements<T>, pack_both<T>, runners<T, HeavyBall<T>>(),
           runners<T, Adam<T>>(), lanes_elements<T>, lanes<T>},
          distance_kernels<T>(),
          {loss_elements<T>, loss_residual<T>},
          sweep_kernels<T>()};
}

}  // namespace MCF_ISA

const Kernels& MCF_JOIN(MCF_ISA, _kernels)() {
  static constexpr Kernels table{MCF_QUOTE(MCF_ISA), MCF_ISA::typed_kernels<float>(), MCF_ISA::typed_kernels<double>()};
  return table;
}

}  // namespace mcf
