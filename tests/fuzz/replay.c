/* Feeds a fuzz target every file of the directory given, each also cut in half and with single bytes changed. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/engine/read_file.h"
#include "tests/fuzz/fuzz.h"

/* In memory of exactly its size, so that the address sanitizer sees a byte read behind it. */
static void feed(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1);

    if (!exact)
        abort();
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

int main(int argc, char **argv)
{
    DIR *dir = argc == 2 ? opendir(argv[1]) : NULL;
    const struct dirent *entry;
    size_t n = 0;

    if (!dir) {
        fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
        return 1;
    }
    while ((entry = readdir(dir))) {
        cleanup(freep) uint8_t *data = NULL;
        char path[4096];
        size_t size = 0;

        if (*entry->d_name == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
        data = read_file(path, &size);
        if (!data)
            abort();
        feed(data, size);
        feed(data, size / 2);
        for (size_t i = 0; i < 64 && size; i++) {
            size_t at = i * 2654435761u % size;

            data[at] ^= (uint8_t)(1u << i % 8);
            feed(data, size);
            data[at] ^= (uint8_t)(1u << i % 8);
        }
        n++;
    }
    closedir(dir);
    printf("%zu files\n", n);
    return !n;
}
