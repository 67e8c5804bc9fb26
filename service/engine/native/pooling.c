/* Max pooling of pictures that lie as [N, H, W, C], and pixels to the numbers that the network takes. See ../pooling.py
   and ../pixels.py.

   The loops are in pooling_loops.h and compiled once for each kind of processor; which ones run is chosen at run time,
   by the number that `taskpack_level` (behind.c) gives. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KINDS 1
#endif

#define INLINE static inline __attribute__((always_inline))
#define PART 64 /* channels that are held at once */

typedef struct {
    void *out;
    const void *in;
    int64_t rows, height, width, channels, out_height, out_width;
    int64_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x;
    int half;
    int64_t next; /* lines of the result that are taken */
} pooling;

#define NAME(name) name##_plain
#include "pooling_loops.h"

#ifdef KINDS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(name) name##_avx2
#include "pooling_loops.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl")
#define NAME(name) name##_avx512
#include "pooling_loops.h"
#pragma GCC pop_options
#endif

/* out          [rows, out_height, out_width, channels]
   in           [rows, height, width, channels]
   shape        rows, height, width, channels, out_height, out_width, then kernel, stride and padding, vertical before
                horizontal: 12 numbers; every window holds a pixel that is not padding
   half         whether numbers are bfloat16; else they are float32
   parallel     `GOMP_parallel` of the OpenMP that torch has loaded; NULL: the calling thread alone
   level        of `taskpack_level`, or lower */
void taskpack_max_pool(void *out, const void *in, const int64_t *shape, int half,
                       void (*parallel)(void (*)(void *), void *, unsigned, unsigned), unsigned threads, int level) {
    void (*work)(void *) = pool_plain;
    pooling p = {out,      in,       shape[0], shape[1], shape[2],  shape[3],  shape[4], shape[5],
                 shape[6], shape[7], shape[8], shape[9], shape[10], shape[11], half,     0};
#ifdef KINDS
    if (level == 1) work = pool_avx2;
    if (level >= 2) work = pool_avx512;
#else
    (void)level;
#endif
    if (parallel == NULL || threads < 2)
        work(&p);
    else
        parallel(work, &p, threads, 0);
}

/* out          numbers of `size` bytes, 4 or 2: [pixels, 3]
   in           [pixels, 3]
   table        [3, 256]: what each channel's values become */
void taskpack_pixels(void *out, const uint8_t *in, const void *table, int64_t pixels, int size) {
    const uint32_t *whole = table;
    const uint16_t *half = table;
    if (size == 4)
        for (int64_t at = 0; at < 3 * pixels; at += 3)
            for (int c = 0; c < 3; c++) ((uint32_t *)out)[at + c] = whole[256 * c + in[at + c]];
    else
        for (int64_t at = 0; at < 3 * pixels; at += 3)
            for (int c = 0; c < 3; c++) ((uint16_t *)out)[at + c] = half[256 * c + in[at + c]];
}
