/* Looks oneDNN's functions up in copies of this program's own file that were cut and changed, in memory of exact
   length. */

#include "onednn.c" /* first: it says which functions of the system it wants */
#include <stdio.h>

/* A function that the table names, so that something is found in the whole file. */
const version *dnnl_version(void) { return NULL; }

static uint64_t state = 1;

static uint64_t draw(uint64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
}

int main(int count, char **arguments) {
    long calls = count > 1 ? atol(arguments[1]) : 1000;
    FILE *file = fopen("/proc/self/exe", "rb");
    static unsigned char whole_file[1 << 25];
    size_t size = fread(whole_file, 1, sizeof whole_file, file);
    fclose(file);
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)whole_file;
    size_t sections = header->e_shoff, table = header->e_shnum * sizeof(Elf64_Shdr);
    if (look_up(whole_file, size, 0) != 1) return fprintf(stderr, "the program's own function was not found\n"), 1;
    for (long call = 0; call < calls; call++) {
        size_t cut = draw(4) ? size : draw(size);
        unsigned char *copy = malloc(cut ? cut : 1);
        memcpy(copy, whole_file, cut);
        for (uint64_t change = draw(8); change > 0; change--) {
            size_t at = draw(3) ? sections + draw(table) : draw(sizeof *header);
            if (at < cut) copy[at] = (unsigned char)draw(256);
        }
        memset(&dnnl, 0, sizeof dnnl);
        look_up(copy, cut, 0);
        free(copy);
    }
    return 0;
}
