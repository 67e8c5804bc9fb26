/* The loops of behind.c, for vectors of LANES numbers; NAME gives types and functions names of their own. */

typedef float NAME(floats) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t NAME(words) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t NAME(halves) __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* out = source[at], count numbers and then zeros; whole: count is LANES */
INLINE void NAME(load)(NAME(floats) *out, const void *source, int64_t at, int64_t count, int half, int whole) {
    NAME(floats) full = {0};
    if (half) {
        const uint16_t *from = (const uint16_t *)source + at;
        NAME(halves) read = {0};
        if (whole) {
            read = *(const NAME(halves) *)from;
        } else {
            int64_t done = count & (LANES / 2);
            if (done) memcpy(&read, from, LANES / 2 * sizeof *from);
            for (; done < count; done++) read[done] = from[done];
        }
        NAME(words) word = __builtin_convertvector(read, NAME(words)) << 16;
        full = (NAME(floats))word;
    } else {
        const float *from = (const float *)source + at;
        if (whole) {
            full = *(const NAME(floats) *)from;
        } else {
            int64_t done = count & (LANES / 2);
            if (done) memcpy(&full, from, LANES / 2 * sizeof *from);
            for (; done < count; done++) full[done] = from[done];
        }
    }
    *out = full;
}

INLINE void NAME(round)(NAME(halves) *out, const NAME(floats) *value) {
#ifdef __AVX512BF16__
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)*value);
    *out = (NAME(halves))rounded;
#else
    NAME(words) word, nan = (NAME(words))(*value != *value);
    word = (NAME(words))*value;
    word = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    *out = __builtin_convertvector((word & ~nan) | (nan & 0x7fc0), NAME(halves));
#endif
}

INLINE void NAME(hold)(NAME(floats) *value, float low, float high) { /* NaN stays NaN */
#ifdef __AVX512F__
    __m512 above = _mm512_max_ps(_mm512_set1_ps(low), (__m512)*value);
    *value = (NAME(floats))_mm512_min_ps(_mm512_set1_ps(high), above);
#else
    NAME(floats) lowest = (NAME(floats)){0} + low, highest = (NAME(floats)){0} + high;
    NAME(words) below = (NAME(words))(*value < lowest), above = (NAME(words))(*value > highest);
    NAME(words) word = ((NAME(words))*value & ~below & ~above) | ((NAME(words))lowest & below) | ((NAME(words))highest & above);
    *value = (NAME(floats))word;
#endif
}

/* out[at] = act(value + add[at]), count numbers */
INLINE void NAME(finish)(const pass *p, int64_t at, NAME(floats) *value, int64_t count, int half, int whole) {
    if (p->add != NULL) {
        NAME(floats) add;
        NAME(load)(&add, p->add, at, count, half, whole);
        *value += add;
    }
    NAME(hold)(value, p->low, p->high);
    if (half) {
        uint16_t *to = (uint16_t *)p->out + at;
        NAME(halves) rounded;
        NAME(round)(&rounded, value);
        if (whole) {
            *(NAME(halves) *)to = rounded;
        } else {
            int64_t done = count & (LANES / 2);
            if (done) memcpy(to, &rounded, LANES / 2 * sizeof *to);
            for (; done < count; done++) to[done] = rounded[done];
        }
    } else {
        float *to = (float *)p->out + at;
        if (whole) {
            *(NAME(floats) *)to = *value;
        } else {
            int64_t done = count & (LANES / 2);
            if (done) memcpy(to, value, LANES / 2 * sizeof *to);
            for (; done < count; done++) to[done] = (*value)[done];
        }
    }
}

#define AT(pointer, index) (*(const NAME(floats) *)((pointer) + (index)))

/* One line of a picture, plus the bias, some channels of it, into the scratch; zeros where there is no such line. */
INLINE void NAME(line)(const pass *p, float *to, int64_t row, int64_t h, int64_t channel, const float *bias, int half) {
    to += p->wide;
    if (h < 0 || h >= p->height) {
        memset(to, 0, sizeof(float) * (size_t)(p->wide * p->width));
        return;
    }
    int64_t at = (row * p->height + h) * p->width * p->channels + channel;
    int64_t count = p->channels - channel < p->wide ? p->channels - channel : p->wide;
    for (int64_t w = 0; w < p->width; w++, at += p->channels, to += p->wide)
        for (int64_t v = 0; v < count; v += LANES) {
            NAME(floats) value;
            if (count - v >= LANES)
                NAME(load)(&value, p->y, at + v, LANES, half, 1);
            else
                NAME(load)(&value, p->y, at + v, count - v, half, 0);
            if (p->add != NULL) __builtin_prefetch((const char *)p->add + (half ? 2 : 4) * (at + v)); /* for finish */
            value += AT(bias, v);
            *(NAME(floats) *)(to + v) = value;
        }
}

/* LANES channels of one line, from the three around it. */
INLINE void NAME(convolve)(const pass *p, const float *above, const float *here, const float *below,
                           const float *taps, int64_t at, int64_t count, int half, int whole) {
    const int64_t step = p->padded, wide = p->wide;
    NAME(floats) t0 = AT(taps, 0), t1 = AT(taps, step), t2 = AT(taps, 2 * step), t3 = AT(taps, 3 * step),
           t4 = AT(taps, 4 * step), t5 = AT(taps, 5 * step), t6 = AT(taps, 6 * step), t7 = AT(taps, 7 * step),
           t8 = AT(taps, 8 * step), shift = AT(taps, 9 * step);
    for (int64_t w = 0; w < p->width; w++, above += wide, here += wide, below += wide, at += p->channels) {
        NAME(floats) sum = shift + AT(above, 0) * t0; /* two sums, so that no addition waits long for another */
        NAME(floats) other = AT(above, wide) * t1;
        sum += AT(above, 2 * wide) * t2;
        other += AT(here, 0) * t3;
        sum += AT(here, wide) * t4;
        other += AT(here, 2 * wide) * t5;
        sum += AT(below, 0) * t6;
        other += AT(below, wide) * t7;
        sum += AT(below, 2 * wide) * t8;
        sum += other;
        NAME(finish)(p, at, &sum, count, half, whole);
    }
}

/* Some channels of one picture. A line is in the scratch before it is written over. */
INLINE void NAME(depthwise)(const pass *p, float *scratch, const float *table, int64_t row, int64_t channel, int half) {
    const int64_t length = (p->width + 2) * p->wide;
    float *above = scratch, *here = above + length, *below = here + length;
    const float *bias = table + channel, *taps = bias + p->padded;
    NAME(line)(p, above, row, -1, channel, bias, half);
    NAME(line)(p, here, row, 0, channel, bias, half);
    for (int64_t h = 0; h < p->height; h++) {
        NAME(line)(p, below, row, h + 1, channel, bias, half);
        int64_t at = (row * p->height + h) * p->width * p->channels + channel;
        for (int64_t v = 0; v < p->wide && channel + v < p->channels; v += LANES) {
            int64_t left = p->channels - channel - v;
            if (left >= LANES)
                NAME(convolve)(p, above + v, here + v, below + v, taps + v, at + v, LANES, half, 1);
            else
                NAME(convolve)(p, above + v, here + v, below + v, taps + v, at + v, left, half, 0);
        }
        float *free = above;
        above = here, here = below, below = free;
    }
}

/* Pixels [from, to) of one picture. */
INLINE void NAME(affine)(const pass *p, const float *scale, int64_t row, int64_t from, int64_t to, int half) {
    const float *shift = scale + p->padded;
    for (int64_t pixel = from; pixel < to; pixel++) {
        int64_t at = (row * p->height * p->width + pixel) * p->channels, c = 0;
        NAME(floats) value;
        for (; c + LANES <= p->channels; c += LANES) {
            NAME(load)(&value, p->y, at + c, LANES, half, 1);
            value = value * AT(scale, c) + AT(shift, c);
            NAME(finish)(p, at + c, &value, LANES, half, 1);
        }
        if (c < p->channels) {
            NAME(load)(&value, p->y, at + c, p->channels - c, half, 0);
            value = value * AT(scale, c) + AT(shift, c);
            NAME(finish)(p, at + c, &value, p->channels - c, half, 0);
        }
    }
}

/* One thread's: part after part, until none is left. A part is `wide` channels of one picture, or as large a share of
   its pixels. */
INLINE void NAME(parts)(pass *p, int half) {
    const int64_t pixels = p->height * p->width, each = (p->channels + p->wide - 1) / p->wide;
    const int64_t length = (p->width + 2) * p->wide;
    float *scratch = p->scratch + __atomic_fetch_add(&p->threads, 1, __ATOMIC_RELAXED) * 3 * (p->width + 2) * WIDEST;
    for (int i = 0; i < 3; i++) { /* no pixels beside a line */
        memset(scratch + i * length, 0, sizeof(float) * (size_t)p->wide);
        memset(scratch + (i + 1) * length - p->wide, 0, sizeof(float) * (size_t)p->wide);
    }
    for (;;) {
        int64_t part = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED), row = part / each, of = part % each;
        if (row >= p->rows) return;
        const float *table = (const float *)(p->tables[row] & ~(uintptr_t)1);
        if (p->tables[row] & 1)
            NAME(depthwise)(p, scratch, table, row, of * p->wide, half);
        else
            NAME(affine)(p, table, row, pixels * of / each, pixels * (of + 1) / each, half);
    }
}

static void NAME(work)(void *argument) {
    pass *p = argument;
    if (p->half)
        NAME(parts)(p, 1);
    else
        NAME(parts)(p, 0);
}

#undef AT
#undef NAME
#undef LANES
