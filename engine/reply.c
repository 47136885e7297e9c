/* One answer: which tokens may come, and to which channel its bytes belong.
 *
 * Where tools may be called but need not be, the first byte that is no blank decides: a brace opens a call, and from it
 * on the answer is held to one; anything else is words, and stays words. Where words have a format, which is JSON too,
 * both readings go on side by side until only one is left, and until then nothing is shown.
 *
 * A call's text is known to the byte (tools.c), so it is cut without being parsed. A frame carries one channel: what a
 * token adds to a second one is held until the next, and an answer is not over before it is shown. */
#include <errno.h>
#include <string.h>

#include "engine/reply.h"
#include "engine/mask.h"

#define HELD_MAX (64u << 20)

static const char before_name[] = "{\"name\":\"", before_arguments[] = "\",\"arguments\":";

struct reply {
    const struct lexicon *lexicon;
    struct tools tools;
    struct mask *mask;                /* NULL: words only */
    uint64_t *opening;                /* (words): the set of a first token, where words are allowed */
    struct textgate gate;
    enum { KIND_OPEN, KIND_WORDS, KIND_CALL } kind;
    bool bound;                       /* held to the grammar from here on */
    struct buf held;                  /* characters that wait for their channel */
    enum { PART_BEFORE, PART_NAME, PART_BETWEEN, PART_ARGUMENTS, PART_AFTER } part;
    size_t part_bytes;                /* of a part that is skipped: seen so far */
    unsigned depth;                   /* of the arguments: objects and arrays that are open */
    bool in_string, escaped;
};

int reply_new(struct reply **ret, const struct chat_request *r, const struct lexicon *l, struct err *err)
{
    struct reply *a = calloc(1, sizeof(*a));
    int x;

    if (!a)
        return -ENOMEM;
    a->lexicon = l;
    buf_init(&a->held, HELD_MAX);
    x = tools_init(&a->tools, r, l, err);
    a->bound = a->tools.grammar && !a->tools.words;
    a->kind = !a->tools.n_calls ? KIND_WORDS : KIND_OPEN;
    /* A document's end is its own; a stop string could only cut it off. */
    textgate_init(&a->gate, r->params.stop, a->bound ? 0 : r->params.n_stop);
    if (x == 0 && a->tools.grammar)
        x = mask_new(&a->mask, a->tools.grammar, l);
    if (x == 0 && a->tools.words) {
        a->opening = calloc(l->words, sizeof(*a->opening));
        x = a->opening ? 0 : -ENOMEM;
    }
    if (x < 0)
        reply_free(a);
    else
        *ret = a;
    return x;
}

void reply_free(struct reply *a)
{
    if (!a)
        return;
    mask_free(a->mask);
    tools_done(&a->tools);
    textgate_done(&a->gate);
    buf_done(&a->held);
    free(a->opening);
    free(a);
}

/* ---- what may come ---- */

static const char *skip_blanks(const char *s, size_t *len)
{
    while (*len && strchr(" \t\r\n", *s) && *s) {
        s++;
        --*len;
    }
    return s;
}

/* All tokens but those that open what is no call. */
static const uint64_t *opening(struct reply *a)
{
    const struct lexicon *l = a->lexicon;

    for (size_t i = 0; i < l->words; i++)
        a->opening[i] = ~l->brace_set[i];
    if (l->n % 64)
        a->opening[l->words - 1] &= (1ull << l->n % 64) - 1;
    for (const int32_t *id = l->braces; *id >= 0; id++) {
        size_t len;
        const char *s = tokenizer_piece(l->tokenizer, *id, &len);

        s = skip_blanks(s, &len);
        if (mask_reads(a->mask, s, len))
            a->opening[*id / 64] |= 1ull << *id % 64;
    }
    return a->opening;
}

int reply_allowed(struct reply *a, size_t budget, const uint64_t **ret)
{
    const uint64_t *set = NULL;

    *ret = NULL;
    if (!a->mask || (!a->bound && a->kind == KIND_WORDS))
        return 0;
    if (!a->bound)
        set = opening(a);
    else if (mask_whole(a->mask))
        set = a->lexicon->ends;       /* what is held is shown with it */
    else
        set = mask_allowed(a->mask, budget);
    *ret = set;
    return set ? 1 : -EILSEQ;
}

/* ---- what is shown ---- */

/* Skip what stands before a part as far as it is there. True: it is behind us. */
static bool skip(struct reply *a, const char *text)
{
    size_t n = MIN(strlen(text) - a->part_bytes, a->held.len);

    buf_consume(&a->held, n);
    a->part_bytes += n;
    if (text[a->part_bytes])
        return false;
    a->part_bytes = 0;
    a->part++;
    return true;
}

/* How many of the held bytes are the arguments': up to where the object that they are is closed. */
static size_t arguments_len(struct reply *a)
{
    for (size_t i = 0; i < a->held.len; i++) {
        char c = (char)a->held.data[i];

        if (a->in_string) {
            a->in_string = a->escaped || c != '"';
            a->escaped = !a->escaped && c == '\\';
            continue;
        }
        a->in_string = c == '"';
        a->depth += c == '{' || c == '[';
        if ((c == '}' || c == ']') && --a->depth == 0) {
            a->part = PART_AFTER;
            return i + 1;
        }
    }
    return a->held.len;
}

static int show_call(struct reply *a, struct buf *text, enum answer_channel *ret)
{
    const uint8_t *quote;
    size_t n;
    int r;

    if (a->part == PART_BEFORE && !skip(a, before_name))
        return 0;
    if (a->part == PART_NAME) {
        quote = a->held.len ? memchr(a->held.data, '"', a->held.len) : NULL;
        if (!quote)
            return 0;
        n = (size_t)(quote - a->held.data);
        r = buf_append(text, a->held.data, n);
        buf_consume(&a->held, n);
        a->part = PART_BETWEEN;
        *ret = ANSWER_TOOL_NAME;
        return r < 0 ? -ENOMEM : 0;
    }
    if (a->part == PART_BETWEEN && !skip(a, before_arguments))
        return 0;
    r = 0;
    if (a->part == PART_ARGUMENTS && a->held.len) {
        n = arguments_len(a);
        r = buf_append(text, a->held.data, n);
        buf_consume(&a->held, n);
        *ret = ANSWER_TOOL_ARGUMENTS;
    }
    if (a->part == PART_AFTER)
        buf_clear(&a->held);
    return r < 0 ? -ENOMEM : 0;
}

static int show(struct reply *a, struct buf *text, enum answer_channel *ret)
{
    int r;

    *ret = ANSWER_TEXT;
    if (a->kind == KIND_OPEN)
        return 0;
    if (a->kind == KIND_CALL)
        return show_call(a, text, ret);
    r = buf_append(text, a->held.data, a->held.len);
    buf_clear(&a->held);
    return r < 0 ? -ENOMEM : 0;
}

/* ---- what came ---- */

/* Words or a call, by the answer's first byte; blanks before a call are not of it. */
static int open_with(struct reply *a, const char *s, size_t len)
{
    s = skip_blanks(s, &len);
    if (!len)
        return 0;
    if (*s != '{') {
        a->kind = KIND_WORDS;
        return 0;
    }
    a->kind = KIND_CALL;
    a->bound = true;
    buf_clear(&a->held);
    textgate_done(&a->gate);
    textgate_init(&a->gate, NULL, 0);
    return mask_accept(a->mask, s, len);
}

/* Which readings of a call or a document are left. */
static void decide(struct reply *a)
{
    bool any, all;

    mask_roots(a->mask, a->tools.calls, a->tools.calls + a->tools.n_calls, &any, &all);
    if (all || (any && mask_whole(a->mask)))
        a->kind = KIND_CALL;
    else if (!any)
        a->kind = KIND_WORDS;
}

int reply_push(struct reply *a, int32_t token, struct buf *text, enum answer_channel *ret)
{
    size_t len;
    const char *s = tokenizer_piece(a->lexicon->tokenizer, token, &len);
    int r = 0, stopped;

    if (a->bound)
        r = mask_accept(a->mask, s, len);
    else if (a->kind == KIND_OPEN) {
        r = open_with(a, s, len);
        if (a->kind == KIND_CALL)
            s = skip_blanks(s, &len);
    }
    if (r < 0)
        return r;
    if (a->bound && a->kind == KIND_OPEN)
        decide(a);
    stopped = textgate_push(&a->gate, s, len, &a->held);
    r = stopped < 0 ? stopped : show(a, text, ret);
    return r < 0 ? r : stopped || (a->bound && mask_whole(a->mask) && !a->held.len);
}

int reply_flush(struct reply *a, struct buf *text, enum answer_channel *ret)
{
    int r = textgate_flush(&a->gate, &a->held);

    /* Blanks alone were no call, nor was what never told. */
    if (a->kind == KIND_OPEN)
        a->kind = KIND_WORDS;
    return r < 0 ? r : show(a, text, ret);
}

uint32_t reply_stop(const struct reply *a)
{
    return a->gate.stopped ? (uint32_t)a->gate.met + 1 : 0;
}

enum engine_finish reply_finish(const struct reply *a, bool whole)
{
    if (a->bound)
        whole = mask_may_end(a->mask);
    return !whole ? FINISH_LENGTH : a->kind == KIND_CALL ? FINISH_TOOL_CALLS : FINISH_STOP;
}
