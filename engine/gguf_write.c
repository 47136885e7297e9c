/* Writing GGUF v3 (ggml's docs/gguf.md), the header whole and the tensors as they come:
 *
 *     "GGUF" | u32 3 | u64 tensors | u64 keys | keys | tensor infos | padding | tensors, each padded to 32 bytes
 *
 * The file grows beside its later name, so that what stands there is never half a model. */
#include "engine/gguf_write.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ALIGNMENT 32
#define MAX_HEADER_PART (1u << 30)
#define FILE_BUFFER (1u << 20)

struct gguf_writer {
    struct buf keys, infos;
    uint64_t n_keys, n_tensors, data_bytes;
    uint64_t *ends;                 /* (n_tensors) where in the data each tensor ends, before its padding */
    int error;                      /* the first while declaring */
    char refused[65];               /* the tensor that -EINVAL is about */
    char *path, *unfinished;
    FILE *file;
    uint64_t written, current;      /* bytes of data, and the tensor being written */
};

int gguf_writer_new(struct gguf_writer **ret)
{
    struct gguf_writer *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    buf_init(&w->keys, MAX_HEADER_PART);
    buf_init(&w->infos, MAX_HEADER_PART);
    *ret = w;
    return 0;
}

void gguf_writer_free(struct gguf_writer *w)
{
    if (!w)
        return;
    if (w->file) {
        fclose(w->file);
        unlink(w->unfinished);
    }
    buf_done(&w->keys);
    buf_done(&w->infos);
    free(w->ends);
    free(w->path);
    free(w->unfinished);
    free(w);
}

/* ---- declaring -------------------------------------------------------------------------------------------------- */

static void put(struct gguf_writer *w, struct buf *b, const void *p, size_t n)
{
    int r = buf_append(b, p, n);

    if (r < 0 && !w->error)
        w->error = r;
}

static void put_u32(struct gguf_writer *w, struct buf *b, uint32_t v)
{
    put(w, b, &v, sizeof(v));
}

static void put_u64(struct gguf_writer *w, struct buf *b, uint64_t v)
{
    put(w, b, &v, sizeof(v));
}

static void put_string(struct gguf_writer *w, struct buf *b, const char *s)
{
    put_u64(w, b, strlen(s));
    put(w, b, s, strlen(s));
}

static void put_key(struct gguf_writer *w, const char *key, enum gguf_type type)
{
    put_string(w, &w->keys, key);
    put_u32(w, &w->keys, type);
    w->n_keys++;
}

void gguf_write_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
    put_key(w, key, GGUF_U32);
    put_u32(w, &w->keys, v);
}

void gguf_write_f32(struct gguf_writer *w, const char *key, float v)
{
    put_key(w, key, GGUF_F32);
    put(w, &w->keys, &v, sizeof(v));
}

void gguf_write_bool(struct gguf_writer *w, const char *key, bool v)
{
    put_key(w, key, GGUF_BOOL);
    put(w, &w->keys, &(uint8_t){ v }, 1);
}

void gguf_write_string(struct gguf_writer *w, const char *key, const char *v)
{
    put_key(w, key, GGUF_STRING);
    put_string(w, &w->keys, v);
}

void gguf_write_array(struct gguf_writer *w, const char *key, enum gguf_type elem, uint64_t n)
{
    put_key(w, key, GGUF_ARRAY);
    put_u32(w, &w->keys, elem);
    put_u64(w, &w->keys, n);
}

void gguf_write_item_string(struct gguf_writer *w, const char *s)
{
    put_string(w, &w->keys, s);
}

void gguf_write_item_i32(struct gguf_writer *w, int32_t v)
{
    put(w, &w->keys, &v, sizeof(v));
}

void gguf_write_key(struct gguf_writer *w, struct gguf_string whole)
{
    put(w, &w->keys, whole.data, whole.len);
    w->n_keys++;
}

static uint64_t padded(uint64_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void gguf_write_tensor(struct gguf_writer *w, const char *name, enum tensor_type type, uint64_t cols, uint64_t rows)
{
    struct gguf_tensor t = { .type = type, .dims = { cols, rows, 1, 1 } };
    uint64_t *ends = realloc(w->ends, (w->n_tensors + 1) * sizeof(*ends));
    int r = ends ? gguf_tensor_bytes(&t, &t.bytes) : -ENOMEM;

    if (ends)
        w->ends = ends;
    if (r < 0) {
        if (!w->error) {
            w->error = r == -ENOMEM ? r : -EINVAL;
            snprintf(w->refused, sizeof(w->refused), "%s", name);
        }
        return;
    }
    put_string(w, &w->infos, name);
    put_u32(w, &w->infos, rows > 1 ? 2 : 1);
    put_u64(w, &w->infos, cols);
    if (rows > 1)
        put_u64(w, &w->infos, rows);
    put_u32(w, &w->infos, type);
    put_u64(w, &w->infos, padded(w->data_bytes));
    w->data_bytes = padded(w->data_bytes) + t.bytes;
    w->ends[w->n_tensors++] = w->data_bytes;
}

uint64_t gguf_writer_bytes(const struct gguf_writer *w)
{
    return w->data_bytes;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static int file_error(const struct gguf_writer *w, struct err *err)
{
    int code = errno ? errno : EIO;

    return err_set(err, -code, "%s: %s", w->unfinished, strerror(code));
}

static int pad_file(struct gguf_writer *w, uint64_t from, struct err *err)
{
    static const uint8_t zeros[ALIGNMENT];

    errno = 0;
    return fwrite(zeros, 1, padded(from) - from, w->file) == padded(from) - from ? 0 : file_error(w, err);
}

int gguf_writer_begin(struct gguf_writer *w, const char *path, struct err *err)
{
    const struct { char magic[4]; uint32_t version; uint64_t n_tensors, n_keys; } head =
        { { 'G', 'G', 'U', 'F' }, 3, w->n_tensors, w->n_keys };

    if (w->error == -EINVAL)
        return err_set(err, -EINVAL, "tensor %s has a shape its type cannot have", w->refused);
    if (w->error)
        return err_set(err, w->error, "%s", strerror(-w->error));
    w->path = strdup(path);
    if (!w->path || asprintf(&w->unfinished, "%s.unfinished", path) < 0) {
        w->unfinished = NULL;
        return -ENOMEM;
    }
    w->file = fopen(w->unfinished, "wbe");
    if (!w->file)
        return file_error(w, err);
    setvbuf(w->file, NULL, _IOFBF, FILE_BUFFER);
    errno = 0;
    if (fwrite(&head, sizeof(head), 1, w->file) != 1 || fwrite(w->keys.data, 1, w->keys.len, w->file) != w->keys.len ||
        fwrite(w->infos.data, 1, w->infos.len, w->file) != w->infos.len)
        return file_error(w, err);
    return pad_file(w, sizeof(head) + w->keys.len + w->infos.len, err);
}

int gguf_write_data(struct gguf_writer *w, const void *data, size_t n, struct err *err)
{
    int r;

    assert(w->current < w->n_tensors && n <= w->ends[w->current] - w->written);
    errno = 0;
    if (fwrite(data, 1, n, w->file) != n)
        return file_error(w, err);
    w->written += n;
    if (w->written < w->ends[w->current])
        return 0;
    r = pad_file(w, w->written, err);
    w->written = padded(w->written);
    w->current++;
    return r;
}

int gguf_writer_end(struct gguf_writer *w, struct err *err)
{
    int failed;

    assert(w->current == w->n_tensors);
    errno = 0;
    failed = fclose(TAKE(w->file));
    if (failed || rename(w->unfinished, w->path) < 0) {
        int r = file_error(w, err);

        unlink(w->unfinished);
        return r;
    }
    return 0;
}
