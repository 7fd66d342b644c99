// The body of an isa_*.cpp: every kernel family, compiled for MCF_ISA, and the table of them.
#include "distance_impl.h"
#include "heavy_ball_slab.h"
#include "kernels.h"

#define MCF_JOIN_(a, b) a##b
#define MCF_JOIN(a, b) MCF_JOIN_(a, b)
#define MCF_QUOTE_(a) #a
#define MCF_QUOTE(a) MCF_QUOTE_(a)

namespace mcf {
namespace MCF_ISA {

template <typename T>
constexpr TypedKernels<T> typed_kernels() {
  return {heavy_ball_kernels<T>(), distance_kernels<T>()};
}

}  // namespace MCF_ISA

const Kernels& MCF_JOIN(MCF_ISA, _kernels)() {
  static constexpr Kernels table{MCF_QUOTE(MCF_ISA), MCF_ISA::typed_kernels<float>(), MCF_ISA::typed_kernels<double>()};
  return table;
}

}  // namespace mcf
