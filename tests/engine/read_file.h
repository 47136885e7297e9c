/* Test data whole. */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/buf.h"

/* The file with a NUL behind it, malloc'd; NULL: cannot be read (errno). */
static inline uint8_t *read_file(const char *path, size_t *ret_size)
{
    FILE *f = fopen(path, "rb");
    uint8_t chunk[1 << 16];
    struct buf b;
    size_t n;

    if (!f)
        return NULL;
    buf_init(&b, 1u << 30);
    while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        if (buf_append(&b, chunk, n) < 0)
            abort();
    fclose(f);
    *ret_size = b.len;
    return (uint8_t *)buf_take(&b);
}

/* A file below one of the directories ctest names: read_below("TERN_SHARED", "nano/evaluation.jsonl", &n). */
static inline uint8_t *read_below(const char *variable, const char *name, size_t *ret_size)
{
    const char *base = getenv(variable);
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", base ? base : ".", name);
    return read_file(path, ret_size);
}
