// Baseline instructions only: SSE2 on x86-64, NEON on 64-bit Arm.
#define MCF_ISA generic
#define MCF_VECTOR_BYTES 16
#include "heavy_ball_slab.h"

namespace mcf {
const Kernels& generic_kernels() {
  static constexpr Kernels table{"generic", generic::heavy_ball_kernels<float>(),
                                 generic::heavy_ball_kernels<double>()};
  return table;
}
}  // namespace mcf
