/* A vocabulary as a tree of bytes, for asking which tokens an automaton lets pass. Constant once built. */
#pragma once

#include "engine/internal.h"

/* The tree in preorder: whoever walks the array goes down it, and to `skip` where a branch is not wanted. Nodes of one
 * depth follow each other through skip. */
struct branch { uint32_t skip; int32_t token; uint16_t depth; uint8_t byte; };   /* token: -1,
    or the first that ends here */
struct branches { struct branch *b; size_t n; };

#define LEXICON_CHARACTERS 64
struct lexicon {
    const struct tokenizer *tokenizer;
    bool ascii;                       /* every character of ASCII has a token of its own */
    size_t n, words, longest;         /* tokens; 64-bit words of a set of them; bytes of the longest */
    struct branches all, quoted;      /* every token; those with a quotation mark in them */
    int32_t *same;                    /* (n): the next token of the same bytes, or -1 */
    uint64_t *ends;                   /* (words): tokens that end an answer */
    /* (words): tokens of at most so many characters that may stand within any string of JSON; the last: any */
    uint64_t *inside[LEXICON_CHARACTERS + 1];
    int32_t *braces;                  /* tokens whose first byte that is no blank is a brace, up to -1 */
    uint64_t *brace_set;              /* (words): the same */
};
int lexicon_new(struct lexicon **ret, const struct tokenizer *t);      /* borrows the tokenizer; 0 or -ENOMEM */
void lexicon_free(struct lexicon *l);
static inline void lexicon_freep(struct lexicon **l) { lexicon_free(*l); }
/* How many tokens s + i takes at least, for every i < len. False: some byte is in no token. */
bool lexicon_price(const struct lexicon *l, const char *s, size_t len, uint32_t *ret);
