/* Text to token ids.
 *
 * Two kinds of vocabulary share one merge loop. "gpt2" is byte-level BPE: a regular expression cuts the text into
 * words, a word starts as its bytes, and the pair with the lowest rank in the list of merges is joined first. "llama"
 * is SentencePiece BPE: the whole text, spaces written as U+2581, starts as its characters, and the pair whose
 * concatenation is the token with the highest score is joined first. In both the leftmost pair wins a tie. Pairs wait
 * in a heap, and a pair one of whose sides has changed meanwhile is known by its length, so a word of n bytes costs
 * O(n log n) however it was chosen.
 *
 * A token that is not of type normal is never the result of a merge: text yields the special tokens only where
 * parse_special asks for them.
 *
 * Not done: the NFC normalisation of Qwen, so its ids are exact for text already in that form. Sources: byte-level BPE
 * of GPT-2, arXiv:1508.07909; SentencePiece, arXiv:1808.06226. */
#include "engine/tokenizer.h"

#define MAX_TEXT (1u << 28)

/* A piece of the word being merged, kept at the index of its first byte. */
struct node { uint32_t prev, next, len; int32_t id; };
#define NO_NODE UINT32_MAX

/* A possible merge of the piece at `at` with its right neighbour. Stale when their length is no longer `len`. */
struct candidate { uint32_t rank, at, len; int32_t id; };

struct encoder {
    const struct tokenizer *t;
    struct tokens *out;
    pcre2_match_data *match;
    struct node *nodes;
    size_t cap_nodes;
    struct candidate *heap;
    size_t n_heap, cap_heap;
};

static void encoder_done(struct encoder *e)
{
    pcre2_match_data_free(e->match);
    free(e->nodes);
    free(e->heap);
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static int heap_push(struct encoder *e, struct candidate c)
{
    size_t i = e->n_heap;

    if (i == e->cap_heap) {
        size_t cap = MAX(256, e->cap_heap * 2);
        struct candidate *heap = reallocarray(e->heap, cap, sizeof(*heap));
        if (!heap)
            return -ENOMEM;
        e->heap = heap;
        e->cap_heap = cap;
    }
    e->n_heap++;
    for (; i && before(&c, &e->heap[(i - 1) / 2]); i = (i - 1) / 2)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
    return 0;
}

static struct candidate heap_pop(struct encoder *e)
{
    struct candidate top = e->heap[0], last = e->heap[--e->n_heap];
    size_t i = 0;

    for (size_t child; (child = 2 * i + 1) < e->n_heap; i = child) {
        if (child + 1 < e->n_heap && before(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!before(&e->heap[child], &last))
            break;
        e->heap[i] = e->heap[child];
    }
    e->heap[i] = last;
    return top;
}

/* Note the merge of the piece at `at` with the next one, if there is such a merge. */
static int propose(struct encoder *e, const char *text, uint32_t at)
{
    const struct tokenizer *t = e->t;
    const struct node *a = &e->nodes[at], *b;
    struct candidate c = { .at = at };

    if (a->next == NO_NODE)
        return 0;
    b = &e->nodes[a->next];
    c.len = a->len + b->len;
    if (t->spm) {
        c.id = tokenizer_find_text(t, text + at, c.len);
        if (c.id < 0)
            return 0;
        c.rank = t->ranks[c.id];
    } else {
        const struct merge *m;
        if (a->id < 0 || b->id < 0)
            return 0;
        m = tokenizer_find_merge(t, a->id, b->id);
        if (m->pair == NO_PAIR)
            return 0;
        c.id = m->id;
        c.rank = m->rank;
    }
    return heap_push(e, c);
}

static int emit(struct encoder *e, const char *text, const struct node *n)
{
    const struct tokenizer *t = e->t;
    int r = 0;

    if (n->id >= 0)
        return tokens_push(e->out, n->id);
    for (uint32_t i = 0; i < n->len && r == 0; i++) {
        int32_t id = t->bytes[(uint8_t)text[i]];
        if (id < 0 && t->unknown >= 0)
            return tokens_push(e->out, t->unknown);
        r = id < 0 ? -EINVAL : tokens_push(e->out, id);
    }
    return r;
}

/* The merge loop over one word. */
static int encode_word(struct encoder *e, const char *text, size_t len)
{
    const struct tokenizer *t = e->t;
    uint32_t prev = NO_NODE;
    int r;

    if (t->ignore_merges) {
        int32_t id = tokenizer_find_text(t, text, len);
        if (id >= 0)
            return tokens_push(e->out, id);
    }
    if (len > e->cap_nodes) {
        size_t cap = MAX(256, len + len / 2);
        struct node *nodes = reallocarray(e->nodes, cap, sizeof(*nodes));
        if (!nodes)
            return -ENOMEM;
        e->nodes = nodes;
        e->cap_nodes = cap;
    }
    for (uint32_t i = 0, k; i < len; i += k) {
        int scanned = t->spm ? utf8_scan(text + i, len - i, NULL) : 1;
        k = scanned > 0 ? (uint32_t)scanned : 1;
        e->nodes[i] = (struct node){ .prev = prev, .next = NO_NODE, .len = k,
                                     .id = t->spm ? tokenizer_find_text(t, text + i, k) : t->bytes[(uint8_t)text[i]] };
        if (prev != NO_NODE)
            e->nodes[prev].next = i;
        prev = i;
    }

    e->n_heap = 0;
    for (uint32_t i = 0; i != NO_NODE; i = e->nodes[i].next) {
        r = propose(e, text, i);
        if (r < 0)
            return r;
    }
    while (e->n_heap) {
        struct candidate c = heap_pop(e);
        struct node *a = &e->nodes[c.at];

        if (!a->len || a->next == NO_NODE || a->len + e->nodes[a->next].len != c.len)
            continue;
        e->nodes[a->next].len = 0;    /* gone: what was proposed there is stale */
        a->len = c.len;
        a->id = c.id;
        a->next = e->nodes[a->next].next;
        if (a->next != NO_NODE)
            e->nodes[a->next].prev = c.at;
        r = propose(e, text, c.at);
        if (r == 0 && a->prev != NO_NODE)
            r = propose(e, text, a->prev);
        if (r < 0)
            return r;
    }
    for (uint32_t i = 0; i != NO_NODE; i = e->nodes[i].next) {
        r = emit(e, text + i, &e->nodes[i]);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Byte-level: cut valid UTF-8 into words; a byte that is no part of a character is a word of its own. */
static int encode_words(struct encoder *e, const char *text, size_t len)
{
    size_t end = 0;
    int r;

    for (size_t at = 0, word; at < len; at += word) {
        if (at == end) {              /* find the next stretch that PCRE2 may read */
            int k;
            while (end < len && (k = utf8_scan(text + end, len - end, NULL)) > 0)
                end += (size_t)k;
        }
        if (at == end) {
            word = 1;
            end++;
        } else {
            r = pcre2_match(e->t->regex, (PCRE2_SPTR)text, end, at, PCRE2_NO_UTF_CHECK, e->match, NULL);
            if (r < 0 && r != PCRE2_ERROR_NOMATCH)
                return r == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -EINVAL;
            word = r < 0 ? 0 : pcre2_get_ovector_pointer(e->match)[1] - at;
            if (!word)                /* the patterns leave nothing out; a character is a safe step if one did */
                word = (size_t)utf8_scan(text + at, end - at, NULL);
        }
        r = encode_word(e, text + at, word);
        if (r < 0)
            return r;
    }
    return 0;
}

/* SentencePiece: spaces become U+2581 and the whole text is one word. */
static int encode_sentence(struct encoder *e, const char *text, size_t len)
{
    cleanup(freep) char *s = NULL;
    size_t n = 0;

    s = malloc(3 * (len + 1));
    if (!s)
        return -ENOMEM;
    if (e->t->space_prefix)
        n = (size_t)(stpcpy(s, "\u2581") - s);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ')
            memcpy(s + n, "\u2581", 3);
        else
            s[n] = text[i];
        n += text[i] == ' ' ? 3 : 1;
    }
    return encode_word(e, s, n);
}

static int encode_plain(struct encoder *e, const char *text, size_t len)
{
    if (!len)
        return 0;
    return e->t->spm ? encode_sentence(e, text, len) : encode_words(e, text, len);
}

/* The special token the text begins with, the longest, or -1. */
static int32_t special_at(const struct tokenizer *t, const char *text, size_t len)
{
    if (!t->special_first[(uint8_t)*text])
        return -1;
    for (size_t i = 0; i < t->n_specials; i++) {
        const struct str *name = &t->names[t->specials[i]];
        if (name->len <= len && memcmp(name->s, text, name->len) == 0)
            return t->specials[i];
    }
    return -1;
}

static int encode(struct encoder *e, const char *text, size_t len, bool parse_special)
{
    size_t start = 0;
    int r;

    for (size_t i = 0; parse_special && i < len;) {
        int32_t id = special_at(e->t, text + i, len - i);
        if (id < 0) {
            i++;
            continue;
        }
        r = encode_plain(e, text + start, i - start);
        if (r == 0)
            r = tokens_push(e->out, id);
        if (r < 0)
            return r;
        start = i += e->t->names[id].len;
    }
    return encode_plain(e, text + start, len - start);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool parse_special, struct tokens *out)
{
    cleanup(encoder_done) struct encoder e = { .t = t, .out = out };
    size_t kept = out->len;
    int r;

    if (len > MAX_TEXT)
        return -EINVAL;
    e.match = pcre2_match_data_create(1, NULL);
    if (!e.match)
        return -ENOMEM;
    r = encode(&e, text, len, parse_special);
    if (r < 0)
        out->len = kept;
    return r;
}
