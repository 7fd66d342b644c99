// AVX-512: 32 registers of 64 bytes.
#if defined(__x86_64__)
// The target is set here and not on the command line, so that one set of flags compiles every file.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define MCF_ISA avx512
#define MCF_VECTOR_BYTES 64
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
