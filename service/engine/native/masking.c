/* One pass over a layer's weights: out = bit ? source * scale of the output channel : +0.0. See ../masking.py.

   `taskpack_mask_f32` and `taskpack_mask_bf16` give the bits that torch gives, except for the payload of a NaN.

   out, source  length numbers; the same memory is not allowed
   bits         one bit a number, the first in the lowest bit of the first byte, 1 where shown; NULL: all are
   scale        blocks x period; number p takes scale[p / span * period + p % span % period]; NULL: 1
   length       blocks * span; span is a multiple of period */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define WIDE 1
#endif

#define LANES 16
#define PATTERN 4096 /* most numbers of a tiled pattern; longer ones take the plain way */

static inline int shown(const uint8_t *bits, int64_t at) {
    return bits == NULL || (bits[at >> 3] >> (at & 7)) & 1;
}

static inline float widened(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline uint16_t rounded(float value) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static void plain_f32(float *out, const float *source, const uint8_t *bits, const float *scale, int64_t period,
                      int64_t from, int64_t start, int64_t stop) {
    for (int64_t at = start; at < stop; at++) {
        float value = scale == NULL ? source[at] : source[at] * scale[(at - from) % period];
        out[at] = shown(bits, at) ? value : 0.0f;
    }
}

static void plain_bf16(uint16_t *out, const uint16_t *source, const uint8_t *bits, const float *scale, int64_t period,
                       int64_t from, int64_t start, int64_t stop) {
    for (int64_t at = start; at < stop; at++) {
        uint16_t value =
            scale == NULL ? source[at] : rounded(widened(source[at]) * scale[(at - from) % period]);
        out[at] = shown(bits, at) ? value : 0;
    }
}

#ifdef WIDE

/* The scales of one block, repeated until they are a multiple of LANES long; 0 where that is too long. */
static int64_t tiled(float *pattern, const float *scale, int64_t period) {
    int64_t whole = period;
    while (whole % LANES) whole += period;
    if (whole > PATTERN) return 0;
    for (int64_t at = 0; at < whole; at++) pattern[at] = scale[at % period];
    return whole;
}

/* Which of the sixteen numbers from `at` on are shown. */
__attribute__((target("avx512f,avx512bw,avx512vl"))) static inline __mmask16 lanes(const uint8_t *bits, int64_t at) {
    uint16_t word;
    if (bits == NULL) return 0xffff;
    memcpy(&word, bits + (at >> 3), sizeof word);
    return word;
}

__attribute__((target("avx512f,avx512bw,avx512vl"))) static int64_t avx512_f32(
    float *out, const float *source, const uint8_t *bits, const float *pattern, int64_t whole, int64_t start,
    int64_t stop) {
    int64_t at = start, turn = 0;
    for (; at + LANES <= stop; at += LANES) {
        __m512 scale = _mm512_loadu_ps(pattern + turn);
        _mm512_storeu_ps(out + at, _mm512_maskz_mul_ps(lanes(bits, at), _mm512_loadu_ps(source + at), scale));
        turn += LANES;
        if (turn == whole) turn = 0;
    }
    return at;
}

__attribute__((target("avx512f,avx512bw,avx512vl"))) static int64_t avx512_bf16(
    uint16_t *out, const uint16_t *source, const uint8_t *bits, const float *pattern, int64_t whole, int64_t start,
    int64_t stop) {
    const __m512i half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1), nan = _mm512_set1_epi32(0x7fc0);
    int64_t at = start, turn = 0;
    for (; at + LANES <= stop; at += LANES) {
        __m512i read = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(source + at)));
        __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(read, 16));
        value = _mm512_mul_ps(value, _mm512_loadu_ps(pattern + turn));
        __m512i word = _mm512_castps_si512(value);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), one);
        word = _mm512_srli_epi32(_mm512_add_epi32(word, _mm512_add_epi32(half, odd)), 16);
        word = _mm512_mask_mov_epi32(word, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), nan);
        word = _mm512_maskz_mov_epi32(lanes(bits, at), word);
        _mm256_storeu_si256((__m256i *)(out + at), _mm512_cvtepi32_epi16(word));
        turn += LANES;
        if (turn == whole) turn = 0;
    }
    return at;
}

#define HALF (LANES / 2)

/* All ones in the lanes of the eight numbers from `at` on that are shown. */
__attribute__((target("avx2"))) static inline __m256i half_lanes(const uint8_t *bits, int64_t at) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    if (bits == NULL) return _mm256_set1_epi32(-1);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits[at >> 3]), each), each);
}

__attribute__((target("avx2"))) static int64_t avx2_f32(
    float *out, const float *source, const uint8_t *bits, const float *pattern, int64_t whole, int64_t start,
    int64_t stop) {
    int64_t at = start, turn = 0;
    for (; at + HALF <= stop; at += HALF) {
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(source + at), _mm256_loadu_ps(pattern + turn));
        _mm256_storeu_ps(out + at, _mm256_and_ps(value, _mm256_castsi256_ps(half_lanes(bits, at))));
        turn += HALF;
        if (turn == whole) turn = 0;
    }
    return at;
}

__attribute__((target("avx2"))) static int64_t avx2_bf16(
    uint16_t *out, const uint16_t *source, const uint8_t *bits, const float *pattern, int64_t whole, int64_t start,
    int64_t stop) {
    const __m256i half = _mm256_set1_epi32(0x7fff), one = _mm256_set1_epi32(1), nan = _mm256_set1_epi32(0x7fc0);
    int64_t at = start, turn = 0;
    for (; at + HALF <= stop; at += HALF) {
        __m256i read = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(source + at)));
        __m256 value = _mm256_castsi256_ps(_mm256_slli_epi32(read, 16));
        value = _mm256_mul_ps(value, _mm256_loadu_ps(pattern + turn));
        __m256i word = _mm256_castps_si256(value);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), one);
        word = _mm256_srli_epi32(_mm256_add_epi32(word, _mm256_add_epi32(half, odd)), 16);
        word = _mm256_blendv_epi8(word, nan, _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q)));
        word = _mm256_and_si256(word, half_lanes(bits, at));
        word = _mm256_permute4x64_epi64(_mm256_packus_epi32(word, word), 0x08); /* both halves' numbers together */
        _mm_storeu_si128((__m128i *)(out + at), _mm256_castsi256_si128(word));
        turn += HALF;
        if (turn == whole) turn = 0;
    }
    return at;
}

static int level(void) { /* 2: AVX-512, 1: AVX2, 0: any processor */
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return __builtin_cpu_supports("avx2") ? 1 : 0;
}

#else

static int level(void) { return 0; }

#endif

#ifdef WIDE
#define FAST(kind)                                                                                \
    if (fast && from % 8 == 0) {                                                                  \
        const float unit = 1.0f;                                                                  \
        int64_t whole = tiled(pattern, own == NULL ? &unit : own, own == NULL ? 1 : period);      \
        if (whole && fast == 2) start = avx512_##kind(out, source, bits, pattern, whole, from, from + span); \
        if (whole && fast == 1) start = avx2_##kind(out, source, bits, pattern, whole, from, from + span);   \
    }
#else
#define FAST(kind)
#endif

#define MASK(kind, type)                                                                                         \
    void taskpack_mask_##kind(type *out, const type *source, const uint8_t *bits, const float *scale,            \
                              int64_t length, int64_t span, int64_t period) {                                    \
        float pattern[PATTERN];                                                                                  \
        const int fast = level();                                                                                 \
        (void)pattern, (void)fast;                                                                               \
        for (int64_t from = 0; from < length; from += span) {                                                    \
            const float *own = scale == NULL ? NULL : scale + from / span * period;                              \
            int64_t start = from;                                                                                \
            FAST(kind)                                                                                           \
            plain_##kind(out, source, bits, own, period, from, start, from + span);                              \
        }                                                                                                        \
    }

MASK(f32, float)
MASK(bf16, uint16_t)
