/* Runs the C functions for pooling and pixels over random shapes in memory that is exactly as long as they say.

   Built with the address and undefined behaviour sanitizers, so whatever they read or write beside their memory ends the
   program; so does a wrong number. Arguments: how many calls. */

#include "pooling.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "guarded.h"

int taskpack_level(void);
void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);

static int pool(void) {
    const int64_t sizes[] = {1, 3, 15, 16, 31, 63, 64, 65, 129};
    const int64_t channels = sizes[rand() % 9], rows = 1 + rand() % 3, height = 1 + rand() % 7, width = 1 + rand() % 7;
    const int64_t ky = 1 + rand() % height, kx = 1 + rand() % width, sy = 1 + rand() % 3, sx = 1 + rand() % 3;
    const int64_t py = rand() % (ky / 2 + 1), px = rand() % (kx / 2 + 1);
    const int64_t oh = (height + 2 * py - ky) / sy + 1, ow = (width + 2 * px - kx) / sx + 1;
    const int64_t shape[] = {rows, height, width, channels, oh, ow, ky, kx, sy, sx, py, px};
    const int64_t count = rows * height * width * channels, made = rows * oh * ow * channels;
    const int half = rand() % 2, level = rand() % (taskpack_level() + 1);
    void *in = malloc((size_t)count * (half ? 2 : 4)), *out = malloc((size_t)made * (half ? 2 : 4));
    int wrong = 0;
    for (int64_t at = 0; at < count; at++) {
        float value = (float)(rand() % 257 - 128);
        uint32_t word;
        memcpy(&word, &value, sizeof word);
        if (half)
            ((uint16_t *)in)[at] = (uint16_t)(word >> 16);
        else
            ((float *)in)[at] = value;
    }
    taskpack_max_pool(out, in, shape, half, rand() % 2 ? GOMP_parallel : NULL, (unsigned)(1 + rand() % 7), level);
    for (int64_t at = 0; at < made; at++) {
        const int64_t c = at % channels, x = at / channels % ow, y = at / channels / ow % oh, row = at / channels / ow / oh;
        float largest = -INFINITY;
        for (int64_t v = y * sy - py; v < y * sy - py + ky; v++)
            for (int64_t u = x * sx - px; u < x * sx - px + kx; u++)
                if (v >= 0 && v < height && u >= 0 && u < width)
                    largest = fmaxf(largest, get(in, ((row * height + v) * width + u) * channels + c, half));
        wrong |= get(out, at, half) != largest;
    }
    if (wrong) printf("level %d, bfloat16 %d: a wrong maximum\n", level, half);
    free(in), free(out);
    return wrong;
}

static int look_up(void) {
    const int64_t pixels = rand() % 40;
    const int size = rand() % 2 ? 4 : 2;
    uint8_t *in = malloc((size_t)(3 * pixels)), *table = malloc((size_t)(3 * 256 * size));
    uint8_t *out = malloc((size_t)(3 * pixels * size));
    int wrong = 0;
    for (int64_t at = 0; at < 3 * pixels; at++) in[at] = (uint8_t)(rand() % 256);
    for (int64_t at = 0; at < 3 * 256 * size; at++) table[at] = (uint8_t)(rand() % 256);
    taskpack_pixels(out, in, table, pixels, size);
    for (int64_t at = 0; at < 3 * pixels; at++)
        wrong |= memcmp(out + at * size, table + (at % 3 * 256 + in[at]) * size, (size_t)size) != 0;
    if (wrong) printf("%d bytes: a wrong number\n", size);
    free(in), free(table), free(out);
    return wrong;
}

int main(int count, char **given) {
    int wrong = 0;
    for (int i = count > 1 ? atoi(given[1]) : 0; i > 0 && !wrong; i--) wrong = pool() || look_up();
    return wrong;
}
