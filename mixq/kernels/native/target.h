// Compiling one source for several instruction sets: code between MIXQ_BEGIN_<ISA> and MIXQ_END can use that set.
//
// The kernels of a `name.cpp` are in `name.inc`, which every_isa.inc includes once for each instruction set, each time in
// another namespace, after every header. So no inline function of a header is compiled for a CPU that the machine may
// not have: the linker keeps any one copy of such a function.
//
// The caller checks the CPU with cpu.h first: an illegal instruction cannot be caught.
#pragma once

#ifndef MIXQ_EMULATED
#define MIXQ_EMULATED 0
#endif

#if defined(__GNUC__) && !defined(__clang__)
// gcc's AVX-512 headers read variables that are undefined on purpose (gcc bug 105593); clang still warns.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define MIXQ_X86 1
#include <immintrin.h>
#elif defined(__aarch64__)
#define MIXQ_ARM64 1
#include <arm_neon.h>
#endif

#define MIXQ_FEATURES_AVX2 "avx2,fma,f16c"
#define MIXQ_FEATURES_AVX_VNNI "avx2,fma,f16c,avxvnni"
#define MIXQ_FEATURES_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
#define MIXQ_FEATURES_AMX MIXQ_FEATURES_AVX512 ",amx-tile,amx-int8"

#if defined(__clang__)
#define MIXQ_FEATURES_NEON "dotprod"
#else
#define MIXQ_FEATURES_NEON "arch=armv8.2-a+dotprod"
#endif

#define MIXQ_PRAGMA(text) _Pragma(#text)
// Vectors in registers: an instruction that does nothing, on operands that an emulated vector cannot be.
#if MIXQ_EMULATED
#define MIXQ_IN_REGISTERS(...)
#else
#define MIXQ_IN_REGISTERS(...) __asm__("" : __VA_ARGS__)
#endif

#if MIXQ_EMULATED  // by tests/native/emulated: for any CPU
#define MIXQ_BEGIN(features)
#define MIXQ_END
#elif defined(__clang__)
#define MIXQ_BEGIN(features) MIXQ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MIXQ_END MIXQ_PRAGMA(clang attribute pop)
#else
#define MIXQ_BEGIN(features) MIXQ_PRAGMA(GCC push_options) MIXQ_PRAGMA(GCC target(features))
#define MIXQ_END MIXQ_PRAGMA(GCC pop_options)
#endif
#define MIXQ_BEGIN_AVX2 MIXQ_BEGIN(MIXQ_FEATURES_AVX2)
#define MIXQ_BEGIN_AVX_VNNI MIXQ_BEGIN(MIXQ_FEATURES_AVX_VNNI)
#define MIXQ_BEGIN_AVX512 MIXQ_BEGIN(MIXQ_FEATURES_AVX512)
#define MIXQ_BEGIN_AMX MIXQ_BEGIN(MIXQ_FEATURES_AMX)
#define MIXQ_BEGIN_NEON MIXQ_BEGIN(MIXQ_FEATURES_NEON)

#define MIXQ_INLINE inline __attribute__((always_inline))
#define MIXQ_APART __attribute__((noinline))
#if defined(__clang__)
#define MIXQ_UNROLL MIXQ_PRAGMA(clang loop unroll(full))
#define MIXQ_NO_UNROLL MIXQ_PRAGMA(clang loop unroll(disable))
#else
#define MIXQ_UNROLL MIXQ_PRAGMA(GCC unroll 32)
#define MIXQ_NO_UNROLL MIXQ_PRAGMA(GCC unroll 1)
#endif
