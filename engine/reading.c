/* Reading bytes by a grammar.
 *
 * What was written so far can often be read in several ways (an `anyOf`, a property that may be left out), so a reading
 * is a set of threads. A thread is the terminal it is in, by value, and the objects and arrays around it, as a list
 * from the inside out whose members are never changed: threads share what they have in common.
 *
 * Every thread can be finished. Nodes that nothing fits are never entered; an object or array is entered only when
 * those it must hold still find room below the greatest depth; patterns and numbers refuse a byte that leads nowhere.
 * So threads may be dropped for lack of room: less can be written, and all of it is right. A thread's price is how
 * many tokens its end takes at least, which is how a document is closed in time. */
#include <errno.h>
#include <string.h>

#include "engine/grammar.h"

#define DONE UINT32_MAX               /* a thread's node: the answer is whole */

/* What a frame waits for: the end of what `at` names. Its state: which property, how many items. */
enum frame_at { AT_OPEN, AT_KEY, AT_COLON, AT_VALUE, AT_COMMA };

static uint32_t frame_rest(const struct grammar *g, const struct spot *s)
{
    const struct node *n = &g->nodes[s->node];
    const struct property *p;

    switch (n->kind) {
    case NODE_OBJECT:
        if (s->at == AT_OPEN)
            return n->object.open;
        p = &n->object.properties[s->state];
        return s->at == AT_KEY ? price_bounded((uint64_t)g->nodes[p->value].price + p->after) : p->after;
    case NODE_ARRAY:
        if (s->at == AT_COMMA)
            return price_bounded((uint64_t)g->nodes[n->array.item].price + array_rest(g, n, s->state + 1));
        return array_rest(g, n, s->state);
    default:
        return s->at == AT_OPEN || s->at == AT_VALUE ? 1 : price_bounded(g->nodes[n->map.value].price +
               (s->at == AT_COLON ? 1ull : s->at == AT_KEY ? 2 : 4));
    }
}

/* NULL: no room. */
static const struct outer *frame_push(struct reading *r, uint32_t node, enum frame_at at, uint64_t state,
                                      const struct outer *up)
{
    struct outer *f;

    if (r->n_frames == r->max_frames)
        return NULL;
    f = &r->frames[r->n_frames++];
    *f = (struct outer){ .spot = { node, at, state }, .up = up, .depth = (uint16_t)((up ? up->depth : 0) + 1) };
    f->price = price_bounded((uint64_t)frame_rest(r->grammar, &f->spot) + (up ? up->price : 0));
    return f;
}

static bool frames_same(const struct outer *a, const struct outer *b)
{
    for (; a != b; a = a->up, b = b->up)
        if (!a || !b || a->depth != b->depth || a->spot.node != b->spot.node || a->spot.at != b->spot.at ||
            a->spot.state != b->spot.state)
            return false;
    return true;
}

bool thread_same(const struct thread *a, const struct thread *b)
{
    return a->root == b->root && a->top.node == b->top.node && a->top.at == b->top.at && a->top.state == b->top.state &&
           frames_same(a->up, b->up);
}

static void thread_push(struct reading *r, struct spot top, const struct outer *up)
{
    struct thread t = { top, up, r->root };

    if (r->n_threads == r->max_threads || r->n_threads - r->base == GRAMMAR_THREADS)
        return;
    for (size_t i = r->base; i < r->n_threads; i++)
        if (thread_same(&r->threads[i], &t))
            return;
    r->threads[r->n_threads++] = t;
}

/* May the node stand inside `up`? */
static bool fits(const struct grammar *g, uint32_t node, const struct outer *up)
{
    return g->nodes[node].price < GRAMMAR_NEVER && (up ? up->depth : 0) + g->nodes[node].height <= GRAMMAR_DEPTH;
}

static void text_push(struct reading *r, uint32_t text, uint32_t at, const struct outer *up)
{
    thread_push(r, text_spot(text, text + 1, at), up);
}

static void enter_one(struct reading *r, uint32_t node, const struct outer *up)
{
    const struct node *n = &r->grammar->nodes[node];
    const struct outer *f;

    if (!fits(r->grammar, node, up))
        return;
    if (!up)
        r->root = node;
    switch (n->kind) {
    case NODE_TEXT:
        thread_push(r, text_spot(n->text.lo, n->text.hi, 0), up);
        return;
    case NODE_OBJECT:
    case NODE_MAP:
    case NODE_ARRAY:
        f = frame_push(r, node, AT_OPEN, 0, up);
        if (f)
            text_push(r, n->kind == NODE_ARRAY ? OPEN_ARRAY : OPEN_OBJECT, 0, f);
        return;
    default:
        thread_push(r, (struct spot){ node, 0, 0 }, up);
    }
}

static void enter(struct reading *r, uint32_t node, const struct outer *up)
{
    const struct node *n = &r->grammar->nodes[node];

    if (n->kind != NODE_ANY_OF)
        enter_one(r, node, up);
    else
        for (uint32_t i = 0; i < n->any_of.n; i++)
            enter_one(r, n->any_of.alternatives[i], up);
}

/* The object's end, or one of its properties from `from` on, up to the first that must be there. */
static void object_next(struct reading *r, const struct outer *f, uint64_t from, bool first)
{
    const struct node *n = &r->grammar->nodes[f->spot.node];

    if (from == n->object.n || (n->object.properties[from].closes && !n->object.properties[from].required))
        text_push(r, CLOSE_OBJECT, 0, f->up);
    for (uint64_t i = from; i < n->object.n; i++) {
        const struct property *p = &n->object.properties[i];
        const struct outer *key = fits(r->grammar, p->value, f) ? frame_push(r, f->spot.node, AT_KEY, i, f->up) : NULL;

        if (key)
            text_push(r, p->key, first, key);
        if (p->required || r->n_threads - r->base == GRAMMAR_THREADS)
            return;
    }
}

static void array_item(struct reading *r, const struct outer *f)
{
    const struct node *n = &r->grammar->nodes[f->spot.node];
    /* As strings are counted. */
    uint64_t count = f->spot.state + (n->array.max != UINT32_MAX || f->spot.state < n->array.min);
    const struct outer *value = n->array.max && fits(r->grammar, n->array.item, f)
                                    ? frame_push(r, f->spot.node, AT_VALUE, MAX(count, 1), f->up) : NULL;

    if (value)
        enter(r, n->array.item, value);
}

static void array_next(struct reading *r, const struct outer *f)
{
    const struct node *n = &r->grammar->nodes[f->spot.node];
    const struct outer *comma;

    if (f->spot.state >= n->array.min)
        text_push(r, CLOSE_ARRAY, 0, f->up);
    if (f->spot.state >= n->array.max)
        return;
    comma = frame_push(r, f->spot.node, AT_COMMA, f->spot.state, f->up);
    if (comma)
        text_push(r, COMMA, 0, comma);
}

static void map_key(struct reading *r, const struct outer *f)
{
    const struct outer *key = fits(r->grammar, r->grammar->nodes[f->spot.node].map.value, f)
                                  ? frame_push(r, f->spot.node, AT_KEY, 0, f->up) : NULL;

    if (key)
        thread_push(r, (struct spot){ ANY_STRING, 0, 0 }, key);
}

static void map_next(struct reading *r, const struct outer *f)
{
    const struct outer *next;

    switch (f->spot.at) {
    case AT_OPEN:
    case AT_VALUE:
        text_push(r, CLOSE_OBJECT, 0, f->up);
        if (f->spot.at == AT_OPEN) {
            map_key(r, f);
            return;
        }
        next = frame_push(r, f->spot.node, AT_COMMA, 0, f->up);
        if (next)
            text_push(r, COMMA, 0, next);
        return;
    case AT_COMMA:
        map_key(r, f);
        return;
    case AT_KEY:
        next = frame_push(r, f->spot.node, AT_COLON, 0, f->up);
        if (next)
            text_push(r, COLON, 0, next);
        return;
    default:
        next = frame_push(r, f->spot.node, AT_VALUE, 0, f->up);
        if (next)
            enter(r, r->grammar->nodes[f->spot.node].map.value, next);
    }
}

/* What was inside frame f is over. */
static void resume(struct reading *r, const struct outer *f)
{
    const struct node *n = f ? &r->grammar->nodes[f->spot.node] : NULL;
    const struct outer *value;

    if (!f) {
        thread_push(r, (struct spot){ DONE, 0, 0 }, NULL);
    } else if (n->kind == NODE_MAP) {
        map_next(r, f);
    } else if (n->kind == NODE_ARRAY) {
        if (f->spot.at == AT_OPEN && n->array.min == 0)
            text_push(r, CLOSE_ARRAY, 0, f->up);
        if (f->spot.at == AT_VALUE)
            array_next(r, f);
        else
            array_item(r, f);
    } else if (f->spot.at == AT_KEY) {
        value = frame_push(r, f->spot.node, AT_VALUE, f->spot.state, f->up);
        if (value)
            enter(r, n->object.properties[f->spot.state].value, value);
    } else {
        object_next(r, f, f->spot.at == AT_OPEN ? 0 : f->spot.state + 1, f->spot.at == AT_OPEN);
    }
}

static void step(struct reading *r, struct thread t, uint8_t byte)
{
    const struct grammar *g = r->grammar;
    struct thread marks[GRAMMAR_THREADS];
    struct spot next = t.top;
    size_t base = r->base, n;
    enum outcome o;

    if (t.top.node == DONE)
        return;
    r->root = t.root;
    o = spot_step(g, &next, byte);
    if (o == GOES_ON)
        thread_push(r, next, t.up);
    else if (o == IS_OVER)
        resume(r, t.up);
    if (!t.up || !spot_may_end(g, &t.top))
        return;

    /* It may also end here; then the byte belongs to one of the marks that can follow. */
    r->base = r->n_threads;
    resume(r, t.up);
    n = r->n_threads - r->base;
    memcpy(marks, r->threads + r->base, n * sizeof(*marks));
    r->n_threads = r->base;
    r->base = base;
    for (size_t i = 0; i < n; i++)
        step(r, marks[i], byte);
}

void grammar_begin(struct reading *r)
{
    r->base = r->n_threads;
    enter(r, (uint32_t)r->grammar->root, NULL);
}

void grammar_step(struct reading *r, size_t first, size_t last, uint8_t byte)
{
    r->base = r->n_threads;
    for (size_t i = first; i < last; i++)
        step(r, r->threads[i], byte);
}

void thread_bytes(const struct grammar *g, const struct thread *t, uint64_t set[4])
{
    if (!thread_must_end(t))
        spot_bytes(g, &t->top, set);
}

bool thread_in_string(const struct grammar *g, const struct thread *t, uint32_t *ret_room, uint32_t *ret_need)
{
    return !thread_must_end(t) && spot_in_string(g, &t->top, ret_room, ret_need);
}

bool thread_may_end(const struct grammar *g, const struct thread *t)
{
    return thread_must_end(t) || (!t->up && spot_may_end(g, &t->top));
}

bool thread_must_end(const struct thread *t)
{
    return t->top.node == DONE;
}

uint32_t thread_price(const struct grammar *g, const struct thread *t)
{
    return thread_must_end(t) ? 0 : price_bounded((uint64_t)spot_price(g, &t->top) + (t->up ? t->up->price : 0));
}
