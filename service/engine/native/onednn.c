/* Convolutions by oneDNN's own interface, of the library that is inside torch. See ../onednn.py.

   torch does not export oneDNN's functions, but its library still names them: they are found in its table of symbols.
   What is called is oneDNN's public C interface, which stays as it is within a major version
   (https://uxlfoundation.github.io/oneDNN/dev_guide_c_and_cpp_apis.html); the names behind NUMBERS are from its
   dnnl_types.h. */

#define _GNU_SOURCE /* dl_iterate_phdr */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__) && defined(__LP64__)
#define FOUND_BY_NAME 1
#endif

typedef struct {
    int kind;
    void *memory;
} argument;

typedef struct {
    int major, minor, patch;
    const char *hash;
    unsigned cpu_runtime, gpu_runtime;
} version;

/* NUMBERS */
enum {
    CPU = 1,
    BF16 = 2,
    F32 = 3,
    TAG_ANY = 1,
    SCRATCHPAD_USER = 1,
    IN_ORDER = 1,
    FORWARD_INFERENCE = 96,
    CONVOLUTION_DIRECT = 1,
    ELTWISE_RELU = 32,
    ELTWISE_CLIP = 46,
    QUERY_IMPL_INFO = 8,
    QUERY_WEIGHTS = 131,
    QUERY_SCRATCHPAD = 136,
    ARG_SRC = 1,
    ARG_DST = 17,
    ARG_WEIGHTS = 33,
    ARG_BIAS = 41,
    ARG_SCRATCHPAD = 80,
    RUNTIME_OMP = 2,
    MOST_DIMS = 12
};

#define FUNCTIONS(F)                                                                                                   \
    F(const version *, version, (void))                                                                                \
    F(int, engine_create, (void **, int, size_t))                                                                      \
    F(int, stream_create, (void **, void *, unsigned))                                                                 \
    F(int, memory_desc_create_with_strides, (void **, int, const int64_t *, int, const int64_t *))                     \
    F(int, memory_desc_create_with_tag, (void **, int, const int64_t *, int, int))                                     \
    F(int, memory_desc_clone, (void **, const void *))                                                                 \
    F(int, memory_desc_destroy, (void *))                                                                              \
    F(int, memory_desc_equal, (const void *, const void *))                                                            \
    F(size_t, memory_desc_get_size, (const void *))                                                                    \
    F(int, memory_create, (void **, const void *, void *, void *))                                                     \
    F(int, memory_destroy, (void *))                                                                                   \
    F(int, post_ops_create, (void **))                                                                                 \
    F(int, post_ops_destroy, (void *))                                                                                 \
    F(int, post_ops_append_sum, (void *, float, int32_t, int))                                                         \
    F(int, post_ops_append_eltwise, (void *, int, float, float))                                                       \
    F(int, primitive_attr_create, (void **))                                                                           \
    F(int, primitive_attr_destroy, (void *))                                                                           \
    F(int, primitive_attr_set_post_ops, (void *, const void *))                                                        \
    F(int, primitive_attr_set_scratchpad_mode, (void *, int))                                                          \
    F(int, convolution_forward_primitive_desc_create,                                                                  \
      (void **, void *, int, int, const void *, const void *, const void *, const void *, const int64_t *,             \
       const int64_t *, const int64_t *, const int64_t *, const void *))                                               \
    F(int, reorder_primitive_desc_create, (void **, const void *, void *, const void *, void *, const void *))         \
    F(int, primitive_desc_query, (const void *, int, int, void *))                                                     \
    F(const void *, primitive_desc_query_md, (const void *, int, int))                                                 \
    F(int, primitive_desc_destroy, (void *))                                                                           \
    F(int, primitive_create, (void **, const void *))                                                                  \
    F(int, primitive_execute, (const void *, void *, int, const argument *))                                           \
    F(int, primitive_destroy, (void *))

#define POINTER(type, name, arguments) type(*name) arguments;
static struct {
    FUNCTIONS(POINTER)
} dnnl;

#define NAME(type, name, arguments) "dnnl_" #name,
static const char *const NAMES[] = {FUNCTIONS(NAME)};
#define COUNT (sizeof NAMES / sizeof NAMES[0])

static void *engine;
static _Thread_local void *stream;

/* ---------------------------------------------------------------- finding them */

#ifdef FOUND_BY_NAME
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    char path[4096];
    uintptr_t base;
} loaded;

static int is_torch(struct dl_phdr_info *info, size_t size, void *found) {
    const char *name = strrchr(info->dlpi_name, '/');
    (void)size;
    if (name == NULL || strcmp(name, "/libtorch_cpu.so") != 0 || strlen(info->dlpi_name) >= sizeof((loaded *)0)->path)
        return 0;
    strcpy(((loaded *)found)->path, info->dlpi_name);
    ((loaded *)found)->base = info->dlpi_addr;
    return 1;
}

/* Fills `dnnl` from a library's table of symbols; how many it found. */
static size_t look_up(const unsigned char *file, size_t size, uintptr_t base) {
    void **pointers = (void **)&dnnl;
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    size_t found = 0;
    if (size < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return 0;
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_shentsize != sizeof(Elf64_Shdr)) return 0;
    if (header->e_shoff > size || (size - header->e_shoff) / sizeof(Elf64_Shdr) < header->e_shnum) return 0;
    if (header->e_shoff % 8 != 0) return 0;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + header->e_shoff);
    for (size_t s = 0; s < header->e_shnum; s++) {
        if (sections[s].sh_type != SHT_SYMTAB || sections[s].sh_link >= header->e_shnum) continue;
        const Elf64_Shdr *table = &sections[s], *strings = &sections[table->sh_link];
        if (table->sh_offset > size || table->sh_size > size - table->sh_offset || table->sh_offset % 8 != 0) return 0;
        if (strings->sh_offset > size || strings->sh_size > size - strings->sh_offset) return 0;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file + table->sh_offset);
        const char *text = (const char *)file + strings->sh_offset;
        for (size_t i = 0; i < table->sh_size / sizeof(Elf64_Sym); i++) {
            if (ELF64_ST_TYPE(symbols[i].st_info) != STT_FUNC || symbols[i].st_shndx == SHN_UNDEF) continue;
            if (symbols[i].st_name >= strings->sh_size) continue;
            const char *name = text + symbols[i].st_name;
            size_t room = strings->sh_size - symbols[i].st_name;
            if (room < 6 || memcmp(name, "dnnl_", 5) != 0) continue;
            for (size_t f = 0; f < COUNT; f++)
                if (pointers[f] == NULL && strlen(NAMES[f]) < room && strcmp(name, NAMES[f]) == 0) {
                    pointers[f] = (void *)(base + symbols[i].st_value);
                    found++;
                }
        }
    }
    return found;
}

static const char *find(void) {
    loaded torch = {"", 0};
    struct stat status;
    size_t found = 0;
    memset(&dnnl, 0, sizeof dnnl);
    if (!dl_iterate_phdr(is_torch, &torch)) return "torch's library is not loaded";
    int file = open(torch.path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return "torch's library cannot be read";
    if (fstat(file, &status) == 0 && status.st_size > 0) {
        void *mapped = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        if (mapped != MAP_FAILED) {
            found = look_up(mapped, (size_t)status.st_size, torch.base);
            munmap(mapped, (size_t)status.st_size);
        }
    }
    close(file);
    return found == COUNT ? NULL : "torch's library does not name oneDNN's functions";
}
#else
static const char *find(void) { return "oneDNN's functions are found on 64-bit Linux only"; }
#endif

/* Why oneDNN cannot be called, for people; NULL where it can. Called once, before everything else here.

   numbers      [3]: its version */
const char *taskpack_onednn(int64_t *numbers) {
    const char *why = find();
    if (why == NULL) {
        const version *own = dnnl.version();
        numbers[0] = own->major, numbers[1] = own->minor, numbers[2] = own->patch;
        if (own->major != 3 || own->cpu_runtime != RUNTIME_OMP)
            why = "torch's oneDNN is not version 3 with OpenMP";
        else if (dnnl.engine_create(&engine, CPU, 0) != 0)
            why = "oneDNN has no engine for this processor";
    }
    return why;
}

/* ---------------------------------------------------------------- what lies how */

/* A convolution's geometry; `taskpack_convolution` and `taskpack_order` take these numbers in this order. */
typedef struct {
    int64_t batch, inputs, height, width, outputs, kernel[2], stride[2], padding[2], dilation[2], groups;
    int64_t half, biased, sums, act; /* act: 0 none, 1 ReLU, 2 ReLU6 */
} geometry;

static int type_of(const geometry *g) { return g->half ? BF16 : F32; }

/* [batch, height, width, channels] in memory. */
static int pictures(void **made, const geometry *g, int64_t channels, int64_t height, int64_t width) {
    int64_t dims[MOST_DIMS] = {g->batch, channels, height, width};
    int64_t strides[MOST_DIMS] = {height * width * channels, 1, width * channels, channels};
    return dnnl.memory_desc_create_with_strides(made, 4, dims, type_of(g), strides);
}

/* A weight's dimensions; how many. */
static int weight_dims(const geometry *g, int64_t *dims) {
    int at = 0;
    if (g->groups > 1) dims[at++] = g->groups;
    dims[at++] = g->outputs / g->groups;
    dims[at++] = g->inputs / g->groups;
    dims[at++] = g->kernel[0];
    dims[at++] = g->kernel[1];
    return at;
}

static int row_major(void **made, const geometry *g) {
    int64_t dims[MOST_DIMS], strides[MOST_DIMS], stride = 1;
    int count = weight_dims(g, dims);
    for (int d = count - 1; d >= 0; d--) strides[d] = stride, stride *= dims[d];
    return dnnl.memory_desc_create_with_strides(made, count, dims, type_of(g), strides);
}

static int64_t side(const geometry *g, int d) {
    int64_t size = d ? g->width : g->height;
    return (size + 2 * g->padding[d] - g->dilation[d] * (g->kernel[d] - 1) - 1) / g->stride[d] + 1;
}

static int attributes(void **made, const geometry *g) {
    void *after = NULL;
    int failed = dnnl.primitive_attr_create(made);
    failed = failed || dnnl.primitive_attr_set_scratchpad_mode(*made, SCRATCHPAD_USER);
    failed = failed || dnnl.post_ops_create(&after);
    if (!failed && g->sums) failed = dnnl.post_ops_append_sum(after, 1.0f, 0, type_of(g));
    if (!failed && g->act == 1) failed = dnnl.post_ops_append_eltwise(after, ELTWISE_RELU, 0.0f, 0.0f);
    if (!failed && g->act == 2) failed = dnnl.post_ops_append_eltwise(after, ELTWISE_CLIP, 0.0f, 6.0f);
    failed = failed || dnnl.primitive_attr_set_post_ops(*made, after);
    if (after != NULL) dnnl.post_ops_destroy(after);
    return failed;
}

/* What oneDNN plans for a convolution whose weight lies in `order`; NULL: in whichever it likes best. */
static int plan(void **made, const geometry *g, const void *order) {
    void *input = NULL, *weight = NULL, *bias = NULL, *output = NULL, *own = NULL;
    int64_t dims[MOST_DIMS], dilates[MOST_DIMS] = {g->dilation[0] - 1, g->dilation[1] - 1};
    int count = weight_dims(g, dims);
    int failed = pictures(&input, g, g->inputs, g->height, g->width);
    failed = failed || pictures(&output, g, g->outputs, side(g, 0), side(g, 1));
    if (order == NULL) failed = failed || dnnl.memory_desc_create_with_tag(&weight, count, dims, type_of(g), TAG_ANY);
    if (g->biased) {
        int64_t length[MOST_DIMS] = {g->outputs}, stride[MOST_DIMS] = {1};
        failed = failed || dnnl.memory_desc_create_with_strides(&bias, 1, length, type_of(g), stride);
    }
    failed = failed || attributes(&own, g);
    failed = failed || dnnl.convolution_forward_primitive_desc_create(
                           made, engine, FORWARD_INFERENCE, CONVOLUTION_DIRECT, input, order ? order : weight, bias,
                           output, g->stride, dilates, g->padding, g->padding, own);
    if (own != NULL) dnnl.primitive_attr_destroy(own);
    void *descriptions[] = {input, weight, bias, output};
    for (int i = 0; i < 4; i++)
        if (descriptions[i] != NULL) dnnl.memory_desc_destroy(descriptions[i]);
    return failed;
}

/* The order in which oneDNN wants this convolution's weight, to be given back to `taskpack_order_free`; NULL: it cannot
   compute it. */
void *taskpack_order(const geometry *g) {
    void *planned = NULL, *order = NULL;
    if (plan(&planned, g, NULL)) return NULL;
    if (dnnl.memory_desc_clone(&order, dnnl.primitive_desc_query_md(planned, QUERY_WEIGHTS, 0))) order = NULL;
    dnnl.primitive_desc_destroy(planned);
    return order;
}

void taskpack_order_free(void *order) { dnnl.memory_desc_destroy(order); }

int64_t taskpack_order_bytes(const void *order) { return (int64_t)dnnl.memory_desc_get_size(order); }

int taskpack_orders_equal(const void *one, const void *other) { return dnnl.memory_desc_equal(one, other); }

static int planned_reorder(void **made, const void *from, const void *to) {
    void *own = NULL;
    int failed = dnnl.primitive_attr_create(&own);
    failed = failed || dnnl.primitive_attr_set_scratchpad_mode(own, SCRATCHPAD_USER);
    failed = failed || dnnl.reorder_primitive_desc_create(made, from, engine, to, engine, own);
    if (own != NULL) dnnl.primitive_attr_destroy(own);
    return failed;
}

typedef struct {
    int kind;
    const void *description;
    void *data;
} operand;

static int execute(const void *primitive, int count, const operand *operands) {
    argument arguments[8];
    int failed = stream == NULL && dnnl.stream_create(&stream, engine, IN_ORDER), made = 0;
    for (int i = 0; i < count && !failed; i++) {
        arguments[i].kind = operands[i].kind;
        failed = dnnl.memory_create(&arguments[i].memory, operands[i].description, engine, operands[i].data);
        made += !failed;
    }
    failed = failed || dnnl.primitive_execute(primitive, stream, count, arguments);
    for (int i = 0; i < made; i++) dnnl.memory_destroy(arguments[i].memory);
    return failed;
}

/* Brings a weight from one order into another; NULL is row-major. Where there is padding it becomes zeros. 0: done. */
int taskpack_reorder(const geometry *g, const void *from, const void *in, const void *to, void *out) {
    void *rows = NULL, *planned = NULL, *primitive = NULL, *scratch = NULL;
    int failed = row_major(&rows, g);
    from = from ? from : rows, to = to ? to : rows;
    failed = failed || planned_reorder(&planned, from, to) || dnnl.primitive_create(&primitive, planned);
    if (!failed) {
        const void *needed = dnnl.primitive_desc_query_md(planned, QUERY_SCRATCHPAD, 0);
        size_t bytes = dnnl.memory_desc_get_size(needed);
        scratch = bytes ? malloc(bytes) : NULL;
        const operand own[] = {{ARG_SRC, from, (void *)in}, {ARG_DST, to, out}, {ARG_SCRATCHPAD, needed, scratch}};
        failed = (bytes && scratch == NULL) || execute(primitive, bytes ? 3 : 2, own);
    }
    free(scratch);
    if (primitive != NULL) dnnl.primitive_destroy(primitive);
    if (planned != NULL) dnnl.primitive_desc_destroy(planned);
    if (rows != NULL) dnnl.memory_desc_destroy(rows);
    return failed;
}

/* ---------------------------------------------------------------- convolutions */

typedef struct {
    geometry shape;
    void *planned, *primitive;
    void *moving, *mover; /* a reorder, where the weight lies otherwise than oneDNN wants it here; else NULL */
    void *input, *weight, *bias, *output;
    const void *scratch, *moving_scratch;
    size_t scratch_bytes, weight_bytes, moving_bytes; /* one behind the other, each from a multiple of 64 on */
} convolution;

static size_t whole(size_t bytes) { return (bytes + 63) / 64 * 64; }

void taskpack_convolution_free(convolution *c) {
    void *primitives[] = {c->primitive, c->mover}, *plans[] = {c->planned, c->moving};
    void *descriptions[] = {c->input, c->weight, c->bias, c->output};
    for (int i = 0; i < 2; i++) {
        if (primitives[i] != NULL) dnnl.primitive_destroy(primitives[i]);
        if (plans[i] != NULL) dnnl.primitive_desc_destroy(plans[i]);
    }
    for (int i = 0; i < 4; i++)
        if (descriptions[i] != NULL) dnnl.memory_desc_destroy(descriptions[i]);
    free(c);
}

/* Plans with the weight as it lies; where oneDNN would then compute in another, slower way than it could, plans to
   bring the weight into the order that it likes best at each call. */
static int plan_best_or_move(convolution *c, const void *order) {
    const char *best = "", *here = NULL;
    void *as_it_lies = NULL;
    if (plan(&c->planned, &c->shape, NULL)) return 1;
    const void *wanted = dnnl.primitive_desc_query_md(c->planned, QUERY_WEIGHTS, 0);
    if (!dnnl.memory_desc_equal(wanted, order)) {
        dnnl.primitive_desc_query(c->planned, QUERY_IMPL_INFO, 0, &best);
        if (plan(&as_it_lies, &c->shape, order) == 0)
            dnnl.primitive_desc_query(as_it_lies, QUERY_IMPL_INFO, 0, &here);
        else
            as_it_lies = NULL;
        if (here != NULL && strcmp(best, here) == 0) {
            dnnl.primitive_desc_destroy(c->planned);
            c->planned = as_it_lies;
        } else {
            if (as_it_lies != NULL) dnnl.primitive_desc_destroy(as_it_lies);
            if (planned_reorder(&c->moving, order, wanted) || dnnl.primitive_create(&c->mover, c->moving)) return 1;
            c->weight_bytes = dnnl.memory_desc_get_size(wanted);
            c->moving_scratch = dnnl.primitive_desc_query_md(c->moving, QUERY_SCRATCHPAD, 0);
            c->moving_bytes = dnnl.memory_desc_get_size(c->moving_scratch);
        }
    }
    return dnnl.primitive_create(&c->primitive, c->planned);
}

/* Plans a convolution once, for the number of threads that this thread has; NULL: oneDNN cannot compute it.

   order        of its weight */
convolution *taskpack_convolution(const geometry *g, const void *order) {
    convolution *c = calloc(1, sizeof *c);
    int64_t length[MOST_DIMS] = {g->outputs}, stride[MOST_DIMS] = {1};
    if (c == NULL) return NULL;
    c->shape = *g;
    int failed = plan_best_or_move(c, order) || dnnl.memory_desc_clone(&c->weight, order);
    failed = failed || pictures(&c->input, g, g->inputs, g->height, g->width);
    failed = failed || pictures(&c->output, g, g->outputs, side(g, 0), side(g, 1));
    failed = failed || dnnl.memory_desc_create_with_strides(&c->bias, 1, length, type_of(g), stride);
    if (failed) {
        taskpack_convolution_free(c);
        return NULL;
    }
    c->scratch = dnnl.primitive_desc_query_md(c->planned, QUERY_SCRATCHPAD, 0);
    c->scratch_bytes = dnnl.memory_desc_get_size(c->scratch);
    return c;
}

/* Bytes that `taskpack_convolve` needs besides its operands. */
int64_t taskpack_convolution_scratch(const convolution *c) {
    return (int64_t)(whole(c->scratch_bytes) + whole(c->weight_bytes) + whole(c->moving_bytes));
}

/* Whether the weight is brought into another order at each call. */
int taskpack_convolution_moves(const convolution *c) { return c->mover != NULL; }

/* out = act(conv(in) + bias + out), the last where it was planned so. 0: done.

   in           [batch, height, width, inputs]
   weight       in the order that it was planned for
   bias         [outputs]; not read unless it was planned so
   out          [batch, height', width', outputs]
   scratch      from a multiple of 64 on; nobody else may use it meanwhile */
int taskpack_convolve(const convolution *c, const void *in, const void *weight, const void *bias, void *out,
                      char *scratch) {
    operand own[5] = {{ARG_SRC, c->input, (void *)in},
                      {ARG_WEIGHTS, c->weight, (void *)weight},
                      {ARG_DST, c->output, out}};
    int count = 3;
    if (c->mover != NULL) {
        char *moved = scratch + whole(c->scratch_bytes);
        const void *wanted = dnnl.primitive_desc_query_md(c->planned, QUERY_WEIGHTS, 0);
        const operand moving[] = {{ARG_SRC, c->weight, (void *)weight},
                                  {ARG_DST, wanted, moved},
                                  {ARG_SCRATCHPAD, c->moving_scratch, moved + whole(c->weight_bytes)}};
        if (execute(c->mover, c->moving_bytes ? 3 : 2, moving)) return 1;
        own[1].description = wanted, own[1].data = moved;
    }
    if (c->shape.biased) own[count++] = (operand){ARG_BIAS, c->bias, (void *)bias};
    if (c->scratch_bytes) own[count++] = (operand){ARG_SCRATCHPAD, c->scratch, scratch};
    return execute(c->primitive, count, own);
}
