// Included before ggml's AMX kernels where GCC compiles them.
//
// GCC's _tile_loadconfig (seen in 12.2) tells the compiler that ldtilecfg reads 8 bytes of the tile configuration; it
// reads 64. The optimiser then drops the stores to the other 56, the CPU finds garbage there, and the first prefill on
// a CPU with AMX ends in a general protection fault. Here the operand has its real size.
#pragma once
#include <immintrin.h>
#if defined(__AMX_TILE__) && !defined(__clang__)
static inline void kith_tile_loadconfig(const void * config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64]) config));
}
#undef _tile_loadconfig
#define _tile_loadconfig kith_tile_loadconfig
#endif
