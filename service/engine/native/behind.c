/* What each picture's own task has behind a shared layer, in one pass over its activations. See ../behind.py.

   out[n] = act(own(y[n]) + add[n]), where own is a depthwise 3x3 of stride 1 that keeps the size, with a bias before it
   and a shift behind; or a scale and a shift. Activations lie as [N, H, W, C], float32 or bfloat16; arithmetic is in
   float32 and rounded once, to nearest, ties to even.

   The loops are in behind_loops.h and compiled once for each kind of processor; which ones run is chosen at run time. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define KINDS 1
#endif

#define INLINE static inline __attribute__((always_inline))
#define MOST_LANES 16
#define WIDEST 64 /* channels that a depthwise takes at once: three lines of them stay near the core */

typedef struct {
    void *out; /* may be y, and may be add */
    const void *y, *add;
    const uintptr_t *tables;
    float *scratch;
    int64_t rows, height, width, channels;
    float low, high;
    int half;
    int64_t padded;        /* channels, up to a multiple of MOST_LANES */
    int64_t wide;          /* channels of a part, a multiple of MOST_LANES */
    int64_t next, threads; /* parts that are taken, threads that have come */
} pass;

#define LANES 4
#define NAME(name) name##_plain
#include "behind_loops.h"

#ifdef KINDS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define NAME(name) name##_avx2
#include "behind_loops.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl")
#define LANES 16
#define NAME(name) name##_avx512
#include "behind_loops.h"
#pragma GCC target("avx512bf16")
#define LANES 16
#define NAME(name) name##_avx512bf16
#include "behind_loops.h"
#pragma GCC pop_options
#endif

/* 0: any processor, 1: AVX2, 2: AVX-512, 3: AVX-512 with bfloat16 */
int taskpack_level(void) {
#ifdef KINDS
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
    return 0;
#endif
}

/* out, y       [rows, height, width, channels]
   add          the same; NULL: nothing is added
   tables       [rows]: the address of float32 [11 or 2, channels up to a multiple of MOST_LANES], plus 1 where it is a
                depthwise's: bias, nine taps, shift; else scale, shift
   scratch      [threads, 3, width + 2, WIDEST]
   half         whether numbers are bfloat16
   low, high    what the result is held between; NaN stays NaN
   parallel     `GOMP_parallel` of the OpenMP that torch has loaded; NULL: the calling thread alone
   level        of `taskpack_level`, or lower */
void taskpack_behind(void *out, const void *y, const void *add, const uintptr_t *tables, float *scratch, int64_t rows,
                     int64_t height, int64_t width, int64_t channels, int half, float low, float high,
                     void (*parallel)(void (*)(void *), void *, unsigned, unsigned), unsigned threads, int level) {
    void (*work)(void *) = work_plain;
    pass p = {out, y, add, tables, scratch, rows, height, width, channels, low, high, half, 0, WIDEST, 0, 0};
    p.padded = (channels + MOST_LANES - 1) / MOST_LANES * MOST_LANES;
    while (threads > 1 && p.wide > MOST_LANES && rows * ((channels + p.wide - 1) / p.wide) < 2 * (int64_t)threads)
        p.wide /= 2; /* enough parts for all */
#ifdef KINDS
    if (level == 1) work = work_avx2;
    if (level == 2) work = work_avx512;
    if (level == 3) work = work_avx512bf16;
#else
    (void)level;
#endif
    if (parallel == NULL || threads < 2)
        work(&p);
    else
        parallel(work, &p, threads, 0);
}
