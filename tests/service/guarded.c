/* Runs the C pass behind a layer over random shapes in memory that is exactly as long as it says it needs.

   Built with the address and undefined behaviour sanitizers, so whatever it reads or writes beside its memory ends the
   program; so does a wrong number. Arguments: how many calls. */

#include "behind.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "guarded.h"

void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);

static float drawn(void) { return (float)(rand() % 2001 - 1000) / 256.0f; } /* exact in float32, not in bfloat16 */

static void *filled(int64_t count, int half) {
    void *made = malloc((size_t)count * (half ? 2 : 4));
    for (int64_t i = 0; i < count; i++) {
        float value = drawn();
        uint32_t word;
        memcpy(&word, &value, sizeof word);
        if (half)
            ((uint16_t *)made)[i] = (uint16_t)(word >> 16);
        else
            ((float *)made)[i] = value;
    }
    return made;
}

/* What the table of a row makes of channel c at (h, w) of its picture. */
static double own(const float *table, int taps, int64_t padded, const void *y, int64_t row, int64_t h, int64_t w,
                  int64_t c, int64_t height, int64_t width, int64_t channels, int half) {
    double sum = table[(taps ? 10 : 1) * padded + c];
    if (!taps) return sum + (double)table[c] * get(y, ((row * height + h) * width + w) * channels + c, half);
    for (int64_t i = 0; i < 9; i++) {
        int64_t a = h + i / 3 - 1, b = w + i % 3 - 1;
        if (a < 0 || a >= height || b < 0 || b >= width) continue;
        sum += (double)table[(1 + i) * padded + c] *
               (get(y, ((row * height + a) * width + b) * channels + c, half) + (double)table[c]);
    }
    return sum;
}

static int call(void) {
    const int64_t sizes[] = {1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 79, 129, 200};
    const int64_t channels = sizes[rand() % 16], height = 1 + rand() % 5, rows = rand() % 4;
    const int64_t width = rand() % 20 ? 1 + rand() % 5 : 40, padded = (channels + MOST_LANES - 1) / MOST_LANES * MOST_LANES;
    const int64_t count = rows * height * width * channels;
    const int level = rand() % (taskpack_level() + 1), half = rand() % 2, adds = rand() % 2, threads = 1 + rand() % 7;
    const float low = rand() % 2 ? 0.0f : -INFINITY, high = rand() % 2 ? 6.0f : INFINITY;
    const size_t bytes = (size_t)count * (half ? 2 : 4);
    void *y = filled(count, half), *add = filled(count, half), *fresh = malloc(bytes);
    void *y_before = malloc(bytes), *add_before = malloc(bytes);
    void *out = (void *[]){fresh, y, adds ? add : y}[rand() % 3];
    uintptr_t *tables = malloc(sizeof *tables * (size_t)rows);
    float *scratch = malloc(sizeof *scratch * (size_t)(threads * 3 * (width + 2) * WIDEST));
    int wrong = 0;
    memcpy(y_before, y, bytes), memcpy(add_before, add, bytes);
    for (int64_t row = 0; row < rows; row++) {
        int taps = rand() % 2;
        tables[row] = (uintptr_t)filled((taps ? 11 : 2) * padded, 0) + (uintptr_t)taps;
    }
    taskpack_behind(out, y, adds ? add : NULL, tables, scratch, rows, height, width, channels, half, low, high,
                    rand() % 2 ? GOMP_parallel : NULL, (unsigned)threads, level);
    for (int64_t at = 0; at < count; at++) {
        int64_t c = at % channels, w = at / channels % width, h = at / channels / width % height;
        int64_t row = at / channels / width / height;
        const float *table = (const float *)(tables[row] & ~(uintptr_t)1);
        double expected = own(table, (int)(tables[row] & 1), padded, y_before, row, h, w, c, height, width, channels, half);
        if (adds) expected += get(add_before, at, half);
        expected = fmin(fmax(expected, low), high);
        wrong |= fabs(get(out, at, half) - expected) > 1e-3 + (half ? fabs(expected) / 256 : 0);
    }
    if (wrong)
        printf("level %d, bfloat16 %d: wrong at %d x %d x %d x %d\n", level, half, (int)rows, (int)height, (int)width,
               (int)channels);
    for (int64_t row = 0; row < rows; row++) free((void *)(tables[row] & ~(uintptr_t)1));
    free(y), free(add), free(fresh), free(y_before), free(add_before), free(tables), free(scratch);
    return wrong;
}

int main(int count, char **given) {
    int wrong = 0;
    for (int i = count > 1 ? atoi(given[1]) : 0; i > 0 && !wrong; i--) wrong = call();
    return wrong;
}
