/* The loops of pooling.c; NAME gives functions names of their own. */

/* held = max(held, in), count numbers; NaN wins */
INLINE void NAME(larger)(float *held, const void *in, int64_t at, int64_t count, int half) {
    if (half) {
        const uint16_t *from = (const uint16_t *)in + at;
        for (int64_t c = 0; c < count; c++) {
            uint32_t word = (uint32_t)from[c] << 16;
            float value;
            memcpy(&value, &word, sizeof value);
            held[c] = (held[c] >= value) | (held[c] != held[c]) ? held[c] : value;
        }
    } else {
        const float *from = (const float *)in + at;
        for (int64_t c = 0; c < count; c++) held[c] = (held[c] >= from[c]) | (held[c] != held[c]) ? held[c] : from[c];
    }
}

/* One line of the result. */
INLINE void NAME(line)(const pooling *p, int64_t row, int64_t y, int half) {
    const int64_t top = y * p->stride_y - p->pad_y, bottom = top + p->kernel_y;
    const int64_t from_y = top < 0 ? 0 : top, to_y = bottom > p->height ? p->height : bottom;
    float held[PART];
    for (int64_t x = 0; x < p->out_width; x++) {
        const int64_t left = x * p->stride_x - p->pad_x, right = left + p->kernel_x;
        const int64_t from_x = left < 0 ? 0 : left, to_x = right > p->width ? p->width : right;
        const int64_t out = ((row * p->out_height + y) * p->out_width + x) * p->channels;
        for (int64_t start = 0; start < p->channels; start += PART) {
            const int64_t count = p->channels - start < PART ? p->channels - start : PART;
            for (int64_t c = 0; c < count; c++) held[c] = -__builtin_inff();
            for (int64_t v = from_y; v < to_y; v++)
                for (int64_t u = from_x; u < to_x; u++) {
                    const int64_t at = ((row * p->height + v) * p->width + u) * p->channels + start;
                    if (count == PART)
                        NAME(larger)(held, p->in, at, PART, half);
                    else
                        NAME(larger)(held, p->in, at, count, half);
                }
            if (half) {
                uint16_t *to = (uint16_t *)p->out + out + start;
                for (int64_t c = 0; c < count; c++) {
                    uint32_t word;
                    memcpy(&word, held + c, sizeof word);
                    to[c] = (uint16_t)(word >> 16); /* exact: it came from there */
                }
            } else {
                memcpy((float *)p->out + out + start, held, (size_t)count * sizeof *held);
            }
        }
    }
}

/* One thread's: line after line, until none is left. */
static void NAME(pool)(void *argument) {
    pooling *p = argument;
    for (;;) {
        const int64_t line = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED);
        if (line >= p->rows * p->out_height) return;
        if (p->half)
            NAME(line)(p, line / p->out_height, line % p->out_height, 1);
        else
            NAME(line)(p, line / p->out_height, line % p->out_height, 0);
    }
}

#undef NAME
