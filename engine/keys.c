/* Writes GGUF keys into memory: a header, then keys, no tensors; gguf_open() reads what is made. */
#include "engine/container.h"

#include <errno.h>
#include <string.h>

#define COUNT_AT 16                 /* where the number of keys stands: behind magic, version and number of tensors */

void keys_bytes(struct keys *k, const void *data, size_t n)
{
    if (!k->error)
        k->error = buf_append(k->b, data, n);
}

void keys_text(struct keys *k, const char *s, size_t len)
{
    keys_bytes(k, &(uint64_t){ len }, sizeof(uint64_t));
    keys_bytes(k, s, len);
}

static void key(struct keys *k, const char *name, enum gguf_type type)
{
    keys_text(k, name, strlen(name));
    keys_bytes(k, &(uint32_t){ type }, sizeof(uint32_t));
    k->n++;
}

void keys_init(struct keys *k, struct buf *b)
{
    *k = (struct keys){ .b = b };
    keys_bytes(k, "GGUF\3\0\0\0", 8);
    keys_bytes(k, &(uint64_t[2]){ 0 }, 16);
}

void keys_u32(struct keys *k, const char *name, uint32_t v)
{
    key(k, name, GGUF_U32);
    keys_bytes(k, &v, sizeof(v));
}

void keys_f32(struct keys *k, const char *name, float v)
{
    key(k, name, GGUF_F32);
    keys_bytes(k, &v, sizeof(v));
}

void keys_bool(struct keys *k, const char *name, bool v)
{
    key(k, name, GGUF_BOOL);
    keys_bytes(k, &(uint8_t){ v }, 1);
}

void keys_string(struct keys *k, const char *name, const char *s, size_t len)
{
    key(k, name, GGUF_STRING);
    keys_text(k, s, len);
}

void keys_array(struct keys *k, const char *name, enum gguf_type elem, uint64_t count)
{
    key(k, name, GGUF_ARRAY);
    keys_bytes(k, &(uint32_t){ elem }, sizeof(uint32_t));
    keys_bytes(k, &count, sizeof(count));
}

int keys_done(struct keys *k)
{
    if (!k->error)
        memcpy(k->b->data + COUNT_AT, &k->n, sizeof(k->n));
    return k->error ? -ENOMEM : 0;
}
