/* Which tokens may come next: the union, over the readings of what was written (threads),
    of the tokens whose bytes each
 * of them lets pass. A thread walks the vocabulary's tree and leaves a branch where it is refused, so what it costs is
 * the part of the tree it agrees with: little between strings, everything inside one. There the tree is not walked: the
 * tokens that may stand in any string are known beforehand, and only those with a quotation mark are asked. What a
 * thread allows is kept for when it comes back to the same place, as it does after every token within a string.
 *
 * Walking and accepting run the very same steps from the very same state, one thread at a time, so a token that was
 * allowed is always accepted, also where a hostile grammar makes more readings than are followed. */
#include <errno.h>
#include <string.h>

#include "engine/mask.h"

#define MAX_KEPT 16384                /* frames, before those out of use are forgotten */
#define N_CACHED 64
#define WALK_FRAMES 16384

struct cached { struct thread thread; uint64_t *set; uint32_t dearest; bool valid; };

/* Frames by content, so that equal ones are the same. */
struct keep { struct arena arena; const struct outer **slots; size_t n, cap; };

struct mask {
    const struct grammar *grammar;
    const struct lexicon *lexicon;
    struct thread threads[GRAMMAR_THREADS];
    size_t n;
    struct keep keep;
    struct cached cache[N_CACHED];
    uint64_t *out, *scratch;
    struct reading reading;
    struct level { size_t first, last, frames; uint64_t bytes[4]; } *levels;         /* (longest + 1): of the walk */
};

/* ---- frames that stay ---- */

static size_t hash_spot(const struct spot *s, const struct outer *up)
{
    uint64_t h = s->node * 0x9e3779b97f4a7c15u ^ s->state * 0xd6e8feb86659fd93u;

    h ^= (uint64_t)s->at << 32 ^ (uintptr_t)up >> 4;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 29;
}

static bool spot_same(const struct spot *a, const struct spot *b)
{
    return a->node == b->node && a->at == b->at && a->state == b->state;
}

static int keep_grow(struct keep *k)
{
    size_t cap = MAX(256, 2 * k->cap);
    const struct outer **slots = calloc(cap, sizeof(*slots));

    if (!slots)
        return -ENOMEM;
    for (size_t i = 0; i < k->cap; i++) {
        const struct outer *f = k->slots[i];
        size_t at = f ? hash_spot(&f->spot, f->up) : 0;
        while (f && slots[at % cap])
            at++;
        if (f)
            slots[at % cap] = f;
    }
    free(k->slots);
    k->slots = slots;
    k->cap = cap;
    return 0;
}

/* The kept frame that is like f, made where there is none. */
static int keep_frame(struct keep *k, const struct outer *f, const struct outer **ret)
{
    const struct outer *up = NULL;
    struct outer *copy;
    size_t at;
    int r = 0;

    if (!f || f->kept) {
        *ret = f;
        return 0;
    }
    if (f->up)
        r = keep_frame(k, f->up, &up);
    if (r == 0 && 2 * k->n >= k->cap)
        r = keep_grow(k);
    if (r < 0)
        return r;
    for (at = hash_spot(&f->spot, up); k->slots[at % k->cap]; at++)
        if (k->slots[at % k->cap]->up == up && spot_same(&k->slots[at % k->cap]->spot, &f->spot)) {
            *ret = k->slots[at % k->cap];
            return 0;
        }
    copy = arena_alloc(&k->arena, sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    *copy = *f;
    copy->up = up;
    copy->kept = true;
    k->slots[at % k->cap] = *ret = copy;
    k->n++;
    return 0;
}

static void keep_done(struct keep *k)
{
    arena_done(&k->arena);
    free(k->slots);
}

static int keep_copy(struct keep *k, const struct outer *f, const struct outer **ret)
{
    struct outer loose;
    const struct outer *up = NULL;
    int r = f && f->up ? keep_copy(k, f->up, &up) : 0;

    if (r < 0 || !f) {
        *ret = NULL;
        return r;
    }
    loose = *f;
    loose.up = up;
    loose.kept = false;
    return keep_frame(k, &loose, ret);
}

/* Forget all frames but those of the threads. */
static int keep_sweep(struct mask *m)
{
    cleanup(keep_done) struct keep fresh = { 0 };
    const struct outer *ups[GRAMMAR_THREADS];
    struct keep old = m->keep;

    for (size_t i = 0; i < m->n; i++) {
        int r = keep_copy(&fresh, m->threads[i].up, &ups[i]);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < m->n; i++)
        m->threads[i].up = ups[i];
    for (size_t i = 0; i < N_CACHED; i++)
        m->cache[i].valid = false;
    m->keep = fresh;
    fresh = old;
    return 0;
}

/* ---- walking ---- */

struct range { uint32_t cheapest, dearest; };        /* prices after the tokens that were met */

/* Add to `set` what the thread lets pass at a price of at most `limit` afterwards. */
static void walk(struct mask *m, const struct branches *tree, const struct thread *t, uint32_t limit, uint64_t *set,
                 struct range *prices)
{
    struct reading *r = &m->reading;
    struct level *levels = m->levels;

    r->threads[0] = *t;
    levels[0] = (struct level){ 0, 1, 0, { 0 } };
    thread_bytes(m->grammar, t, levels[0].bytes);
    for (size_t i = 0; i < tree->n;) {
        const struct branch *b = &tree->b[i];
        const struct level *at = &levels[b->depth];
        uint32_t price = GRAMMAR_NEVER;
        struct level *in;

        if (!(at->bytes[b->byte / 64] >> b->byte % 64 & 1)) {
            i = b->skip;
            continue;
        }
        r->n_threads = at->last;
        r->n_frames = at->frames;
        grammar_step(r, at->first, at->last, b->byte);
        if (r->n_threads == at->last) {
            i = b->skip;
            continue;
        }
        in = &levels[b->depth + 1];
        *in = (struct level){ at->last, r->n_threads, r->n_frames, { 0 } };
        i++;
        if (i < b->skip)
            for (size_t k = in->first; k < in->last; k++)
                thread_bytes(m->grammar, &r->threads[k], in->bytes);
        if (b->token < 0)
            continue;
        for (size_t k = in->first; k < in->last; k++)
            price = MIN(price, thread_price(m->grammar, &r->threads[k]));
        prices->cheapest = MIN(prices->cheapest, price);
        if (price > limit)
            continue;
        prices->dearest = MAX(prices->dearest, price);
        for (int32_t id = b->token; id >= 0; id = m->lexicon->same[id])
            set[id / 64] |= 1ull << id % 64;
    }
}

/* Make `set` what the thread allows. */
static void fill(struct mask *m, const struct thread *t, uint32_t limit, uint64_t *set, struct range *prices)
{
    const struct lexicon *l = m->lexicon;
    uint32_t room, need, inside;

    *prices = (struct range){ GRAMMAR_NEVER, 0 };
    if (thread_must_end(t)) {
        memset(set, 0, l->words * sizeof(*set));
        return;
    }
    if (thread_in_string(m->grammar, t, &room, &need)) {
        /* At worst a token leaves a character's escape open. Where that would cost too much, the string is closed,
         * if it may be: it is time. */
        inside = need + 5 + (t->up ? t->up->price : 0);
        if (inside <= limit || need == 0) {
            if (inside <= limit)
                memcpy(set, l->inside[room >= l->longest ? LEXICON_CHARACTERS : MIN(room, LEXICON_CHARACTERS - 1)],
                       l->words * sizeof(*set));
            else
                memset(set, 0, l->words * sizeof(*set));
            prices->dearest = inside;
            walk(m, &l->quoted, t, limit, set, prices);
            return;
        }
    }
    memset(set, 0, l->words * sizeof(*set));
    walk(m, &l->all, t, limit, set, prices);
}

static const struct cached *cache_get(struct mask *m, const struct thread *t)
{
    struct cached *c = &m->cache[hash_spot(&t->top, t->up) % N_CACHED];
    struct range prices;

    if (c->valid && c->thread.up == t->up && spot_same(&c->thread.top, &t->top))
        return c;
    if (!c->set)
        c->set = malloc(m->lexicon->words * sizeof(*c->set));
    if (!c->set)
        return NULL;
    fill(m, t, UINT32_MAX, c->set, &prices);
    c->thread = *t;
    c->dearest = prices.dearest;
    c->valid = true;
    return c;
}

static bool unite(uint64_t *set, const uint64_t *more, size_t words)
{
    uint64_t any = 0;

    for (size_t i = 0; i < words; i++)
        any |= set[i] |= more[i];
    return any != 0;
}

/* Everything the threads allow within the limit; false: nothing. */
static bool allow(struct mask *m, uint32_t limit, struct range *prices)
{
    const size_t words = m->lexicon->words;
    bool any = false;

    memset(m->out, 0, words * sizeof(*m->out));
    for (size_t i = 0; i < m->n; i++) {
        const struct thread *t = &m->threads[i];
        const struct cached *c = cache_get(m, t);
        struct range here = { GRAMMAR_NEVER, 0 };

        if (thread_may_end(m->grammar, t))
            any |= unite(m->out, m->lexicon->ends, words);
        if (c && c->dearest <= limit) {
            any |= unite(m->out, c->set, words);
            continue;
        }
        fill(m, t, limit, m->scratch, &here);
        prices->cheapest = MIN(prices->cheapest, here.cheapest);
        any |= unite(m->out, m->scratch, words);
    }
    return any;
}

const uint64_t *mask_allowed(struct mask *m, size_t budget)
{
    uint32_t limit = (uint32_t)MIN(MAX(budget, 1) - 1, GRAMMAR_NEVER);
    struct range prices = { GRAMMAR_NEVER, 0 };

    if (allow(m, limit, &prices))
        return m->out;
    return allow(m, prices.cheapest, &prices) ? m->out : NULL;
}

/* ---- accepting ---- */

/* What a thread becomes by the bytes: the reading's threads from *ret_first up to what is returned. */
static size_t read_bytes(struct mask *m, const struct thread *t, const char *s, size_t len, size_t *ret_first)
{
    struct reading *r = &m->reading;
    size_t first = 0, last = 1;

    r->threads[0] = *t;
    r->n_frames = 0;
    for (size_t i = 0; i < len && first < last; i++) {
        r->n_threads = last;
        grammar_step(r, first, last, (uint8_t)s[i]);
        first = last;
        last = r->n_threads;
    }
    *ret_first = first;
    return last;
}

/* Add the threads that one becomes by the bytes; when there are too many, the cheapest stay. */
static int advance(struct mask *m, const struct thread *t, const char *s, size_t len, struct thread *out, size_t *n)
{
    size_t first, last = read_bytes(m, t, s, len, &first);

    for (; first < last; first++) {
        struct thread next = m->reading.threads[first];
        size_t at = *n, i;
        int k = keep_frame(&m->keep, next.up, &next.up);

        if (k < 0)
            return k;
        for (i = 0; i < *n; i++)
            if (out[i].up == next.up && out[i].root == next.root && spot_same(&out[i].top, &next.top))
                break;
        if (i < *n)
            continue;
        if (*n == GRAMMAR_THREADS)
            for (at = i = 0; i < *n; i++)
                if (thread_price(m->grammar, &out[i]) > thread_price(m->grammar, &out[at]))
                    at = i;
        if (*n == GRAMMAR_THREADS && thread_price(m->grammar, &out[at]) <= thread_price(m->grammar, &next))
            continue;
        out[at] = next;
        *n += at == *n;
    }
    return 0;
}

int mask_accept(struct mask *m, const char *s, size_t len)
{
    struct thread next[GRAMMAR_THREADS];
    size_t n = 0;

    for (size_t i = 0; i < m->n; i++) {
        int r = advance(m, &m->threads[i], s, len, next, &n);
        if (r < 0)
            return r;
    }
    if (!n)
        return -EINVAL;
    memcpy(m->threads, next, n * sizeof(*next));
    m->n = n;
    return m->keep.n > MAX_KEPT ? keep_sweep(m) : 0;
}

bool mask_reads(struct mask *m, const char *s, size_t len)
{
    for (size_t i = 0; i < m->n; i++) {
        size_t first;
        if (read_bytes(m, &m->threads[i], s, len, &first) > first)
            return true;
    }
    return false;
}

bool mask_whole(const struct mask *m)
{
    for (size_t i = 0; i < m->n; i++)
        if (!thread_must_end(&m->threads[i]))
            return false;
    return true;
}

bool mask_may_end(const struct mask *m)
{
    for (size_t i = 0; i < m->n; i++)
        if (thread_may_end(m->grammar, &m->threads[i]))
            return true;
    return false;
}

void mask_roots(const struct mask *m, uint32_t lo, uint32_t hi, bool *ret_any, bool *ret_all)
{
    *ret_any = false;
    *ret_all = true;
    for (size_t i = 0; i < m->n; i++)
        if (m->threads[i].root >= lo && m->threads[i].root < hi)
            *ret_any = true;
        else
            *ret_all = false;
}

/* ---- start and end ---- */

int mask_new(struct mask **ret, const struct grammar *g, const struct lexicon *l)
{
    cleanup(mask_freep) struct mask *m = calloc(1, sizeof(*m));
    struct reading *r;

    if (!m)
        return -ENOMEM;
    m->grammar = g;
    m->lexicon = l;
    m->out = calloc(l->words, sizeof(*m->out));
    m->scratch = calloc(l->words, sizeof(*m->scratch));
    m->levels = calloc(l->longest + 1, sizeof(*m->levels));
    r = &m->reading;
    *r = (struct reading){ .grammar = g, .max_frames = WALK_FRAMES };
    r->max_threads = (l->longest + 3) * GRAMMAR_THREADS;
    r->threads = calloc(r->max_threads, sizeof(*r->threads));
    r->frames = calloc(r->max_frames, sizeof(*r->frames));
    if (!m->out || !m->scratch || !m->levels || !r->threads || !r->frames)
        return -ENOMEM;
    grammar_begin(r);
    for (size_t i = 0; i < r->n_threads; i++) {
        m->threads[m->n] = r->threads[i];
        if (keep_frame(&m->keep, r->threads[i].up, &m->threads[m->n++].up) < 0)
            return -ENOMEM;
    }
    *ret = TAKE(m);
    return 0;
}

void mask_free(struct mask *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < N_CACHED; i++)
        free(m->cache[i].set);
    keep_done(&m->keep);
    free(m->out);
    free(m->scratch);
    free(m->levels);
    free(m->reading.threads);
    free(m->reading.frames);
    free(m);
}
