/* A Hugging Face directory from anywhere: the input is config.json, a NUL, and what model.safetensors holds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine/source.h"
#include "tests/engine/hf_write.h"
#include "tests/fuzz/fuzz.h"

static char dir[64];
static volatile uint8_t sink;

static void remove_dir(void)
{
    static const char *const names[] = { "config.json", "tokenizer.json", "model.safetensors" };
    char path[128];

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void write_file(const char *name, const void *data, size_t size)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    const struct source_tensor *t;
    struct source *s = NULL;
    struct err err;

    if (!*dir) {
        snprintf(dir, sizeof(dir), "%s", access("/dev/shm", W_OK) ? "/tmp/tern-fuzz-XXXXXX" : "/dev/shm/tern-fuzz-XXXXXX");
        if (!mkdtemp(dir))
            abort();
        atexit(remove_dir);
        write_file("tokenizer.json", hf_tokenizer, sizeof(hf_tokenizer) - 1);
    }
    if (!nul)
        return 0;
    write_file("config.json", data, (size_t)(nul - data));
    write_file("model.safetensors", nul + 1, size - 1 - (size_t)(nul - data));
    if (source_open(&s, dir, &err) < 0)
        return 0;
    for (size_t i = 0; (t = source_tensor_at(s, i)); i++)
        for (size_t at = 0; at < t->bytes; at += 61)
            sink ^= t->data[at];
    source_free(s);
    return 0;
}
