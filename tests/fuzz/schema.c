/* A JSON Schema from anywhere. Whatever is understood can be followed: from every place that is reached there is a
 * byte to go on with or an end, and the way that is said to be the shortest ends when it is said to. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "engine/grammar.h"
#include "tests/fuzz/fuzz.h"

enum { THREADS = 258 * GRAMMAR_THREADS, FRAMES = 1 << 16, STEPS = 60, LONGEST = 200 };

struct walk { struct reading r; size_t n; };

static uint32_t price(const struct grammar *g, const struct thread *t, size_t n)
{
    uint32_t best = UINT32_MAX;

    for (size_t i = 0; i < n; i++) {
        uint32_t p = thread_may_end(g, &t[i]) ? 0 : thread_price(g, &t[i]);
        best = p < best ? p : best;
    }
    return best;
}

/* Try all bytes; take the cheapest, or the `pick`-th of those that are possible. 1: went on, 0: it ends here. */
static int go_on(struct walk *w, int pick, unsigned *depth)
{
    struct reading *r = &w->r;
    size_t frames = r->n_frames, n = w->n, possible = 0;
    int best = -1, at[256];
    uint32_t cheapest = UINT32_MAX;

    for (int b = 0; b < 256; b++) {
        uint32_t p;

        r->n_threads = n;
        r->n_frames = frames;
        grammar_step(r, 0, n, (uint8_t)b);
        if (r->n_threads == n)
            continue;
        at[possible++] = b;
        p = price(r->grammar, r->threads + n, r->n_threads - n);
        if (p < cheapest) {
            cheapest = p;
            best = b;
        }
    }
    r->n_threads = n;
    r->n_frames = frames;
    if (!possible) {
        if (price(r->grammar, r->threads, n) != 0)
            abort();                  /* nowhere to go */
        return 0;
    }
    grammar_step(r, 0, n, (uint8_t)(pick < 0 ? best : at[(size_t)pick % possible]));
    memmove(r->threads, r->threads + n, (r->n_threads - n) * sizeof(*r->threads));
    w->n = r->n_threads -= n;
    for (size_t i = 0; i < w->n; i++)
        if (r->threads[i].up && r->threads[i].up->depth > *depth)
            *depth = r->threads[i].up->depth;
    return 1;
}

static void follow(const struct grammar *g, const uint8_t *data, size_t size)
{
    static struct thread *threads;
    static struct outer *frames;
    struct walk w = { { .grammar = g, .max_threads = THREADS, .max_frames = FRAMES }, 0 };
    unsigned depth = 0;
    uint32_t left;

    if (!threads) {
        threads = calloc(THREADS, sizeof(*threads));
        frames = calloc(FRAMES, sizeof(*frames));
    }
    w.r.threads = threads;
    w.r.frames = frames;
    grammar_begin(&w.r);
    w.n = w.r.n_threads;
    if (!w.n)
        abort();
    for (size_t i = 0; i < STEPS && w.r.n_frames < FRAMES / 2; i++)
        if (!go_on(&w, data[i * 31 % size], &depth))
            return;
    left = price(g, w.r.threads, w.n);
    if (left > LONGEST || w.r.n_frames >= FRAMES / 2)
        return;
    for (; left; left--)
        if (price(g, w.r.threads, w.n) == 0 || !go_on(&w, -1, &depth))
            return;
    /* Near the greatest depth the shortest way may be closed. */
    if (price(g, w.r.threads, w.n) != 0 && depth < GRAMMAR_DEPTH / 2)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct grammar *g = NULL;
    size_t work = GRAMMAR_WORK;
    struct err err = { "" };
    json_t *schema = json_parse(data, size, &err);
    int64_t root;
    int r;

    if (!schema)
        return 0;
    r = grammar_new(&g);
    root = r < 0 ? r : schema_add(g, schema, "schema", &work, &err);
    r = root < 0 ? (int)root : grammar_finish(g, (size_t)root, NULL, &err);
    if (r < 0 && r != -ENOMEM && (r != -EINVAL || !*err.msg))
        abort();
    if (r == 0)
        follow(g, data, size);
    grammar_free(g);
    json_decref(schema);
    return 0;
}
