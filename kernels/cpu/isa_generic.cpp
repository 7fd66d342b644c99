// Baseline instructions only: SSE2 on x86-64, NEON on 64-bit Arm.
#define MCF_ISA generic
#define MCF_VECTOR_BYTES 16
#include "isa.h"
