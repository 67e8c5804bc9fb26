/* What the programs share that run the C functions in guarded memory. */

#include <stdint.h>
#include <string.h>

/* Number `at` of an array of float32, or of bfloat16 where half. */
static float get(const void *from, int64_t at, int half) {
    float value;
    uint32_t word;
    if (!half) return ((const float *)from)[at];
    word = (uint32_t)((const uint16_t *)from)[at] << 16;
    memcpy(&value, &word, sizeof value);
    return value;
}
