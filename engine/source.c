/* A checkpoint's files, mapped, and its tensors by name.
 *
 * Keys always end as one parsed GGUF image: that of the file, of a split set's first part, or one that huggingface.c
 * writes in memory from the JSON files. Tensors of all parts stand in one array in order of name. */
#include "engine/source.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MEMORY_ALIGNMENT 8

struct source_file {
    const uint8_t *data;
    size_t size;
    bool mapped;                    /* else borrowed */
};

struct source {
    const char *container;
    struct source_file *files;
    size_t n_files;
    struct gguf *keys;
    struct source_tensor *tensors;  /* in order of name */
    size_t n_tensors;
};

/* ---- files ------------------------------------------------------------------------------------------------------ */

static int map_file(struct source_file *f, const char *path, struct err *err)
{
    cleanup(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);      /* NONBLOCK: a FIFO must not hold us */
    struct stat st;
    void *p;

    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) || !st.st_size)
        return err_set(err, -EINVAL, "%s: %s", path, S_ISREG(st.st_mode) ? "is empty" : "is not a file");
    p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    *f = (struct source_file){ .data = p, .size = (size_t)st.st_size, .mapped = true };
    return 0;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static int compare_tensors(const void *a, const void *b)
{
    struct gguf_string x = ((const struct source_tensor *)a)->name, y = ((const struct source_tensor *)b)->name;
    int r = memcmp(x.data, y.data, MIN(x.len, y.len));

    return r ? r : (x.len > y.len) - (x.len < y.len);
}

static int take_gguf_tensors(struct source *s, const struct gguf *g)
{
    const struct gguf_tensor *t;
    size_t n = 0;

    while (gguf_tensor_at(g, n))
        n++;
    s->tensors = calloc(MAX(n, 1), sizeof(*s->tensors));
    if (!s->tensors)
        return -ENOMEM;
    for (; (t = gguf_tensor_at(g, s->n_tensors)); s->n_tensors++) {
        struct source_tensor *to = &s->tensors[s->n_tensors];

        *to = (struct source_tensor){ .name = t->name, .type = t->type, .n_dims = t->n_dims, .data = t->data,
                                      .bytes = t->bytes, .scale = 1 };
        memcpy(to->dims, t->dims, sizeof(to->dims));
    }
    return 0;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* path NULL: data. */
static int source_new(struct source **ret, const char *path, const void *data, size_t size, struct err *err)
{
    cleanup(source_freep) struct source *s = calloc(1, sizeof(*s));
    int r;

    if (!s)
        return -ENOMEM;
    s->files = calloc(1, sizeof(*s->files));
    if (!s->files)
        return -ENOMEM;
    s->n_files = 1;
    s->files[0] = (struct source_file){ .data = data, .size = size };
    if (path) {
        r = map_file(&s->files[0], path, err);
        if (r < 0)
            return r;
    }
    s->container = "GGUF";
    r = gguf_open(&s->keys, s->files[0].data, s->files[0].size, err);
    if (r < 0)
        return r;
    r = take_gguf_tensors(s, s->keys);
    if (r < 0)
        return r;
    qsort(s->tensors, s->n_tensors, sizeof(*s->tensors), compare_tensors);
    *ret = TAKE(s);
    return 0;
}

int source_open(struct source **ret, const char *path, struct err *err)
{
    return source_new(ret, path, NULL, 0, err);
}

int source_open_memory(struct source **ret, const void *data, size_t size, struct err *err)
{
    if ((uintptr_t)data % MEMORY_ALIGNMENT)
        return err_set(err, -EINVAL, "a model in memory must begin at a multiple of %d", MEMORY_ALIGNMENT);
    return source_new(ret, NULL, data, size, err);
}

void source_free(struct source *s)
{
    if (!s)
        return;
    gguf_free(s->keys);
    for (size_t i = 0; i < s->n_files; i++)
        if (s->files[i].mapped)
            munmap((void *)s->files[i].data, s->files[i].size);
    free(s->files);
    free(s->tensors);
    free(s);
}

/* ---- reading it ------------------------------------------------------------------------------------------------- */

const struct gguf *source_keys(const struct source *s)
{
    return s->keys;
}

const struct source_tensor *source_tensor(const struct source *s, const char *name)
{
    const struct source_tensor want = { .name = { name, strlen(name) } };

    return bsearch(&want, s->tensors, s->n_tensors, sizeof(want), compare_tensors);
}

const struct source_tensor *source_tensor_at(const struct source *s, size_t i)
{
    return i < s->n_tensors ? &s->tensors[i] : NULL;
}

size_t source_tensor_count(const struct source *s)
{
    return s->n_tensors;
}

size_t source_bytes(const struct source *s)
{
    size_t sum = 0;

    for (size_t i = 0; i < s->n_files; i++)
        sum += s->files[i].size;
    return sum;
}

const char *source_container(const struct source *s)
{
    return s->container;
}

int source_digest(const struct source *s, char ret[80])
{
    uint8_t sum[EVP_MAX_MD_SIZE];
    unsigned n;

    if (!EVP_Digest(s->files[0].data, s->files[0].size, sum, &n, EVP_sha256(), NULL))
        return -ENOMEM;
    strcpy(ret, "sha256:");
    for (unsigned i = 0; i < n; i++)
        snprintf(ret + 7 + 2 * (size_t)i, 3, "%02x", sum[i]);
    return 0;
}
