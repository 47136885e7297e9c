/* What the tokenizer's files share: tokenizer.c its lookups, tokenizer_load.c the reading of a vocabulary, bpe.c the
 * cutting of text. */
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <errno.h>
#include <pcre2.h>
#include <string.h>

#include "engine/internal.h"
#include "engine/utf8.h"

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };

struct str { const char *s; uint32_t len; };

/* Strings by content: open addressing over ids, at most half full; -1 is an empty slot. */
struct str_table { int32_t *slots; uint32_t mask; };

/* Pairs of ids by content, open addressing, at most half full. */
struct merge { uint64_t pair; uint32_t rank; int32_t id; };
#define NO_PAIR UINT64_MAX

struct tokenizer {
    size_t n;
    bool spm;                         /* else byte-level */
    bool ignore_merges;               /* a whole word that is a token is that token */
    bool space_prefix;                /* spm: the text begins with a space */
    struct str *names, *pieces;       /* as in the vocabulary; as bytes of text */
    uint8_t *types;
    bool *ends;
    uint32_t *ranks;                  /* spm: order of the scores, best lowest */
    char *blob;                       /* what names and pieces point into */
    struct str_table by_name;         /* every token */
    struct str_table by_text;         /* normal tokens by what the merge loop sees: pieces, or names for spm */
    struct merge *merges;
    uint32_t merges_mask;
    int32_t bytes[256];               /* the token of a single byte, or -1 */
    int32_t bos, eos, unknown;
    int32_t *specials;                /* control and user tokens, longest first */
    size_t n_specials;
    bool special_first[256];          /* bytes a special token can begin with */
    pcre2_code *regex;
};

/* The smallest power of two that n entries fill at most by half, less one. */
uint32_t str_table_mask(size_t n);
int str_table_init(struct str_table *t, size_t n);              /* 0 or -ENOMEM; slots are free()d */
/* The slot that holds the string, or the empty one where it belongs. */
int32_t *str_table_slot(const struct str_table *t, const struct str *strs, const char *s, size_t len);
void str_table_add(struct str_table *t, const struct str *strs, int32_t id);    /* of two equal ones the first counts */

/* What the merge loop sees of a token. */
static inline const struct str *tokenizer_texts(const struct tokenizer *t)
{
    return t->spm ? t->names : t->pieces;
}

/* The normal token whose text this is, or -1. */
int32_t tokenizer_find_text(const struct tokenizer *t, const char *s, size_t len);
/* The pair's merge, or the empty slot (pair NO_PAIR) where it belongs. */
struct merge *tokenizer_find_merge(const struct tokenizer *t, int32_t left, int32_t right);

/* Fill a zeroed tokenizer from the tokenizer.ggml.* keys. 0, -ENOMEM, -EINVAL with *err. */
int tokenizer_load(struct tokenizer *t, const struct gguf *g, struct err *err);
