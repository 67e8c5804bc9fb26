/* Steps of a forward one after the other in one call, so that nothing but them takes time. See ../chain.py. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef void (*parallel_regions)(void (*)(void *), void *, unsigned, unsigned);

int taskpack_convolve(const void *plan, const void *in, const void *weight, const void *bias, void *out, char *scratch);
void taskpack_behind(void *out, const void *y, const void *add, const uintptr_t *tables, float *scratch, int64_t rows,
                     int64_t height, int64_t width, int64_t channels, int half, float low, float high,
                     parallel_regions parallel, unsigned threads, int level);
void taskpack_max_pool(void *out, const void *in, const int64_t *shape, int half, parallel_regions parallel,
                       unsigned threads, int level);

enum { CONVOLVE, BEHIND, POOL, COPY }; /* chain.Kind */

typedef struct {
    int64_t kind;
    const void *plan;     /* CONVOLVE */
    int64_t in, add, out; /* bytes from the start of the memory; in < 0: the input; add < 0: nothing */
    int64_t layer;        /* CONVOLVE: whose weight; CONVOLVE and BEHIND: whose bias or tables */
    int64_t threads;      /* BEHIND and POOL */
    int64_t shape[12];    /* BEHIND: rows, height, width, channels; POOL: as `taskpack_max_pool` has it; COPY: bytes */
    double low, high;     /* BEHIND */
} step;

/* 0: done; else the number of the step that failed, counted from 1.

   input        what the steps begin with
   memory       theirs, for all that they write
   scratch      as much as the step needs that needs most, from a multiple of 64 on
   weights      by layer
   own          by layer: its bias, or NULL, or its tables as `taskpack_behind` takes them
   half         whether numbers are bfloat16
   parallel, level  as for `taskpack_behind` */
int64_t taskpack_chain(const step *steps, int64_t count, const void *input, char *memory, char *scratch,
                       const void *const *weights, const void *const *own, int half, parallel_regions parallel,
                       int level) {
    for (int64_t i = 0; i < count; i++) {
        const step *s = &steps[i];
        const void *in = s->in < 0 ? input : memory + s->in, *add = s->add < 0 ? NULL : memory + s->add;
        void *out = memory + s->out;
        unsigned threads = (unsigned)s->threads;
        switch (s->kind) {
        case CONVOLVE:
            if (taskpack_convolve(s->plan, in, weights[s->layer], own[s->layer], out, scratch)) return i + 1;
            break;
        case BEHIND:
            taskpack_behind(out, in, add, own[s->layer], (float *)scratch, s->shape[0], s->shape[1], s->shape[2],
                            s->shape[3], half, (float)s->low, (float)s->high, parallel, threads, level);
            break;
        case POOL:
            taskpack_max_pool(out, in, s->shape, half, parallel, threads, level);
            break;
        case COPY:
            memcpy(out, in, (size_t)s->shape[0]);
            break;
        default:
            return i + 1;
        }
    }
    return 0;
}
