/* For tests of answers that are held to a JSON Schema: a grammar from a schema, and whether it lets a document pass. */
#pragma once

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "engine/grammar.h"

/* As engine_schema_check(), which says why not, but the grammar is kept. */
static int schema_compile(struct grammar **ret, const json_t *schema, const struct lexicon *prices, struct err *err)
{
    size_t work = GRAMMAR_WORK;
    int64_t root;
    int r = grammar_new(ret);

    if (r < 0)
        return r;
    root = schema_add(*ret, schema, "schema", &work, err);
    r = root < 0 ? (int)root : grammar_finish(*ret, (size_t)root, prices, err);
    if (r < 0) {
        grammar_free(*ret);
        *ret = NULL;
    }
    return r;
}

/* Byte by byte: 1, 0, or -1: it is the beginning of what would pass. */
static int schema_reads(const struct grammar *g, const char *s, size_t len)
{
    enum { THREADS = 3 * GRAMMAR_THREADS, FRAMES = 1 << 16 };
    static struct thread threads[THREADS];
    static struct outer frames[FRAMES];
    struct reading r = { .grammar = g, .threads = threads, .frames = frames, .max_threads = THREADS, .max_frames = FRAMES };
    size_t n;

    grammar_begin(&r);
    n = r.n_threads;
    for (size_t i = 0; i < len && n; i++) {
        grammar_step(&r, 0, n, (uint8_t)s[i]);
        memmove(threads, threads + n, (r.n_threads - n) * sizeof(*threads));
        n = r.n_threads -= n;
    }
    for (size_t i = 0; i < n; i++)
        if (thread_may_end(g, &threads[i]))
            return 1;
    return n ? -1 : 0;
}
