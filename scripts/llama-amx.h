#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
static inline void kith_tile_loadconfig(const void * config) { __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64]) config)); }
#undef _tile_loadconfig
#define _tile_loadconfig kith_tile_loadconfig
#endif
