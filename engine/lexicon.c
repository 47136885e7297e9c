/* A vocabulary's tokens in the order of their bytes, made a tree once,
    when the model is loaded. What does not depend on
 * an answer's grammar is worked out here too: nearly every token may stand inside a string, and which of them may, by
 * how many characters they have, is a row of sets; only the few with a quotation mark need asking. */
#include <errno.h>
#include <string.h>

#include "engine/grammar.h"
#include "engine/lexicon.h"

#define MAX_PIECE 256             /* longer tokens are never among the allowed */

struct piece { const char *s; size_t len; int32_t id; };

static int piece_order(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    int r = memcmp(x->s, y->s, MIN(x->len, y->len));

    return r ? r : x->len != y->len ? (x->len < y->len ? -1 : 1) : (x->id > y->id) - (x->id < y->id);
}

/* From sorted pieces to a tree. */
static int branches_build(struct branches *out, const struct piece *pieces, size_t n, int32_t *same)
{
    uint32_t *open = NULL;            /* the branch that is open at each depth */
    struct branch *shrunk;
    size_t total = 0, depth = 0, longest = 0;

    for (size_t i = 0; i < n; i++) {
        total += pieces[i].len;
        longest = MAX(longest, pieces[i].len);
    }
    out->b = calloc(total + 1, sizeof(*out->b));
    open = calloc(longest + 1, sizeof(*open));
    if (!out->b || !open) {
        free(open);
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const struct piece *p = &pieces[i];
        size_t common = 0;

        while (i && common < MIN(p->len, p[-1].len) && p->s[common] == p[-1].s[common])
            common++;
        if (i && p->len == p[-1].len && common == p->len) {
            same[p[-1].id] = p->id;
            continue;
        }
        for (; depth > common; depth--)
            out->b[open[depth - 1]].skip = (uint32_t)out->n;
        for (; depth < p->len; depth++) {
            open[depth] = (uint32_t)out->n;
            out->b[out->n++] = (struct branch){ 0, -1, (uint16_t)depth, (uint8_t)p->s[depth] };
        }
        out->b[out->n - 1].token = p->id;
    }
    for (; depth; depth--)
        out->b[open[depth - 1]].skip = (uint32_t)out->n;
    free(open);
    shrunk = realloc(out->b, (out->n + 1) * sizeof(*out->b));
    out->b = shrunk ? shrunk : out->b;
    return 0;
}

static void set_add(uint64_t *set, int32_t id)
{
    set[id / 64] |= 1ull << id % 64;
}

static int sets_build(struct lexicon *l, const struct piece *pieces, size_t n)
{
    size_t n_braces = 0;

    for (size_t i = 0; i <= LEXICON_CHARACTERS; i++) {
        l->inside[i] = calloc(l->words, sizeof(*l->inside[i]));
        if (!l->inside[i])
            return -ENOMEM;
    }
    l->ends = calloc(l->words, sizeof(*l->ends));
    l->brace_set = calloc(l->words, sizeof(*l->brace_set));
    l->braces = malloc((n + 1) * sizeof(*l->braces));
    if (!l->ends || !l->brace_set || !l->braces)
        return -ENOMEM;
    for (size_t i = 0; i < l->n; i++)
        if (tokenizer_is_end(l->tokenizer, (int32_t)i))
            set_add(l->ends, (int32_t)i);
    for (size_t i = 0; i < n; i++) {
        int characters = spot_scan_string(pieces[i].s, pieces[i].len);
        size_t blank = 0;

        for (int k = MIN(characters, LEXICON_CHARACTERS); characters >= 0 && k <= LEXICON_CHARACTERS; k++)
            set_add(l->inside[k], pieces[i].id);
        while (blank < pieces[i].len && strchr(" \t\r\n", pieces[i].s[blank]) && pieces[i].s[blank])
            blank++;
        if (blank < pieces[i].len && pieces[i].s[blank] == '{') {
            set_add(l->brace_set, pieces[i].id);
            l->braces[n_braces++] = pieces[i].id;
        }
    }
    l->braces[n_braces] = -1;
    return 0;
}

static int build(struct lexicon *l, struct piece *pieces)
{
    size_t n = 0, n_quoted = 0;
    int r;

    for (size_t i = 0; i < l->n; i++) {
        size_t len;
        const char *s = tokenizer_piece(l->tokenizer, (int32_t)i, &len);

        if (!len || len > MAX_PIECE || tokenizer_is_end(l->tokenizer, (int32_t)i))
            continue;
        pieces[n++] = (struct piece){ s, len, (int32_t)i };
        l->longest = MAX(l->longest, len);
    }
    qsort(pieces, n, sizeof(*pieces), piece_order);
    memset(l->same, 0xff, l->n * sizeof(*l->same));
    r = branches_build(&l->all, pieces, n, l->same);
    if (r == 0)
        r = sets_build(l, pieces, n);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (memchr(pieces[i].s, '"', pieces[i].len))
            pieces[n_quoted++] = pieces[i];
    r = branches_build(&l->quoted, pieces, n_quoted, l->same);
    l->ascii = r == 0;
    for (char c = ' '; c < 0x7f && l->ascii; c++) {
        uint32_t price;
        l->ascii = lexicon_price(l, &c, 1, &price);
    }
    return r;
}

int lexicon_new(struct lexicon **ret, const struct tokenizer *t)
{
    cleanup(lexicon_freep) struct lexicon *l = calloc(1, sizeof(*l));
    cleanup(freep) struct piece *pieces = calloc(tokenizer_size(t), sizeof(*pieces));
    int r;

    if (!l || !pieces)
        return -ENOMEM;
    l->tokenizer = t;
    l->n = tokenizer_size(t);
    l->words = (l->n + 63) / 64;
    l->same = calloc(l->n, sizeof(*l->same));
    r = l->same ? build(l, pieces) : -ENOMEM;
    if (r == 0)
        *ret = TAKE(l);
    return r;
}

void lexicon_free(struct lexicon *l)
{
    if (!l)
        return;
    for (size_t i = 0; i <= LEXICON_CHARACTERS; i++)
        free(l->inside[i]);
    free(l->all.b);
    free(l->quoted.b);
    free(l->same);
    free(l->ends);
    free(l->braces);
    free(l->brace_set);
    free(l);
}

/* The branch for a byte among those that begin at `at`, which are siblings up to `end`; `end`: none. */
static size_t branch_find(const struct branches *t, size_t at, size_t end, uint8_t byte)
{
    while (at < end && t->b[at].byte != byte)
        at = t->b[at].skip;
    return at;
}

bool lexicon_price(const struct lexicon *l, const char *s, size_t len, uint32_t *ret)
{
    for (size_t i = len; i-- > 0;) {
        size_t at = 0, end = l->all.n;

        ret[i] = UINT32_MAX;
        for (size_t k = i; k < len; k++) {
            at = branch_find(&l->all, at, end, (uint8_t)s[k]);
            if (at == end)
                break;
            if (l->all.b[at].token >= 0)
                ret[i] = MIN(ret[i], 1 + (k + 1 < len ? ret[k + 1] : 0));
            end = l->all.b[at].skip;
            at++;
        }
        if (ret[i] == UINT32_MAX)
            return false;
    }
    return true;
}
