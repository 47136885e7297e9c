/* A vocabulary in memory: its tables, and what is asked of it. */
#include "engine/tokenizer.h"

int tokens_push(struct tokens *t, int32_t id)
{
    if (t->len == t->cap) {
        size_t cap = MAX(64, t->cap * 2);
        int32_t *ids = reallocarray(t->ids, cap, sizeof(*ids));
        if (!ids)
            return -ENOMEM;
        t->ids = ids;
        t->cap = cap;
    }
    t->ids[t->len++] = id;
    return 0;
}

void tokens_done(struct tokens *t)
{
    free(t->ids);
    *t = (struct tokens){ 0 };
}

static uint64_t mix(uint64_t h)
{
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return (h ^ h >> 32) * 0xd6e8feb86659fd93u;
}

static uint64_t hash(const char *s, size_t len)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < len; i++)
        h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return mix(h) >> 20;
}

uint32_t str_table_mask(size_t n)
{
    uint32_t size = 16;

    while (size < 2 * n)
        size *= 2;
    return size - 1;
}

int str_table_init(struct str_table *t, size_t n)
{
    t->mask = str_table_mask(n);
    t->slots = malloc((t->mask + 1) * sizeof(*t->slots));
    if (!t->slots)
        return -ENOMEM;
    memset(t->slots, 0xff, (t->mask + 1) * sizeof(*t->slots));
    return 0;
}

int32_t *str_table_slot(const struct str_table *t, const struct str *strs, const char *s, size_t len)
{
    for (uint64_t i = hash(s, len);; i++) {
        int32_t *slot = &t->slots[i & t->mask];
        if (*slot < 0 || (strs[*slot].len == len && memcmp(strs[*slot].s, s, len) == 0))
            return slot;
    }
}

void str_table_add(struct str_table *t, const struct str *strs, int32_t id)
{
    int32_t *slot = str_table_slot(t, strs, strs[id].s, strs[id].len);

    if (*slot < 0)
        *slot = id;
}

int32_t tokenizer_find_text(const struct tokenizer *t, const char *s, size_t len)
{
    return *str_table_slot(&t->by_text, tokenizer_texts(t), s, len);
}

struct merge *tokenizer_find_merge(const struct tokenizer *t, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

    for (uint64_t i = mix(pair) >> 20;; i++) {
        struct merge *m = &t->merges[i & t->merges_mask];
        if (m->pair == pair || m->pair == NO_PAIR)
            return m;
    }
}

int tokenizer_new(struct tokenizer **ret, const struct gguf *g, struct err *err)
{
    struct tokenizer *t = calloc(1, sizeof(*t));
    int r;

    if (!t)
        return -ENOMEM;
    r = tokenizer_load(t, g, err);
    if (r < 0) {
        tokenizer_free(t);
        return r;
    }
    *ret = t;
    return 0;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    free(t->names);
    free(t->pieces);
    free(t->types);
    free(t->ends);
    free(t->ranks);
    free(t->blob);
    free(t->by_name.slots);
    free(t->by_text.slots);
    free(t->merges);
    free(t->specials);
    pcre2_code_free(t->regex);
    free(t);
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *ret_len)
{
    bool shown = t->types[id] != TOKEN_CONTROL && t->types[id] != TOKEN_UNKNOWN;

    *ret_len = shown ? t->pieces[id].len : 0;
    return t->pieces[id].s;
}

const char *tokenizer_name(const struct tokenizer *t, int32_t id)
{
    return t->names[id].s;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *token)
{
    return *str_table_slot(&t->by_name, t->names, token, strlen(token));
}

size_t tokenizer_size(const struct tokenizer *t)
{
    return t->n;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_is_end(const struct tokenizer *t, int32_t id)
{
    return t->ends[id];
}
