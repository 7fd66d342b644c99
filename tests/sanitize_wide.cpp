// The 64-byte layout of AVX-512 in baseline instructions, for processors without it.
#define MCF_ISA wide
#define MCF_VECTOR_BYTES 64
#include "../kernels/cpu/isa.h"
