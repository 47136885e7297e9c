/* What may be written, as nodes that refer to each other: made by schema.c and tools.c,
    then weighed here. A node's price
 * is the fewest tokens it can be written with, its height how many objects and arrays that takes inside each other.
 * Nodes that nothing fits keep an endless price and are never entered. */
#include <errno.h>
#include <string.h>

#include "engine/grammar.h"
#include "engine/lexicon.h"

#define MAX_STEPS (1u << 20)          /* between alternatives, while they are gathered */

/* ---- building ---- */

int grammar_new(struct grammar **ret)
{
    static const char *const marks[] = { "{", "}", "[", "]", ",", ":" };
    cleanup(grammar_freep) struct grammar *g = calloc(1, sizeof(*g));

    if (!g)
        return -ENOMEM;
    for (size_t i = 0; i < ARRAY_SIZE(marks); i++)
        if (grammar_text(g, marks[i], 1) < 0)
            return -ENOMEM;
    if (grammar_node(g, (struct node){ .kind = NODE_TEXT }) < 0 ||
        grammar_node(g, (struct node){ .kind = NODE_STRING, .string = { 0, UINT32_MAX } }) < 0)
        return -ENOMEM;
    *ret = TAKE(g);
    return 0;
}

void grammar_free(struct grammar *g)
{
    if (!g)
        return;
    arena_done(&g->arena);
    free(g->nodes);
    free(g->texts);
    free(g);
}

int64_t grammar_node(struct grammar *g, struct node node)
{
    if (g->n_nodes == g->cap_nodes) {
        size_t cap = MAX(64, 2 * g->cap_nodes);
        struct node *nodes = reallocarray(g->nodes, cap, sizeof(*nodes));
        if (!nodes)
            return -ENOMEM;
        g->nodes = nodes;
        g->cap_nodes = cap;
    }
    g->nodes[g->n_nodes] = node;
    return (int64_t)g->n_nodes++;
}

int64_t grammar_text(struct grammar *g, const char *s, size_t len)
{
    char *copy = arena_strndup(&g->arena, s, len);

    if (!copy)
        return -ENOMEM;
    if (g->n_texts == g->cap_texts) {
        size_t cap = MAX(64, 2 * g->cap_texts);
        struct text *texts = reallocarray(g->texts, cap, sizeof(*texts));
        if (!texts)
            return -ENOMEM;
        g->texts = texts;
        g->cap_texts = cap;
    }
    g->texts[g->n_texts] = (struct text){ copy, (uint32_t)len, NULL };
    return (int64_t)g->n_texts++;
}

/* ---- weighing ---- */

static uint32_t text_price(const struct grammar *g, uint32_t text, uint32_t at)
{
    const struct text *t = &g->texts[text];

    return t->price && at < t->len ? t->price[at] : t->len - at;
}

uint32_t texts_price(const struct grammar *g, uint32_t lo, uint32_t hi, uint32_t at)
{
    uint32_t price = GRAMMAR_NEVER;

    for (; lo < hi; lo++)
        price = MIN(price, text_price(g, lo, at));
    return price;
}

uint32_t array_rest(const struct grammar *g, const struct node *n, uint64_t count)
{
    uint64_t more = n->array.min > count ? n->array.min - count : 0, price = 1;

    if (more)
        price += more * (1 + (uint64_t)g->nodes[n->array.item].price) - (count == 0);
    return price_bounded(price);
}

/* Of the object's members from its last on; its height beside. */
static uint32_t object_price(struct grammar *g, struct node *n, uint32_t *ret_height)
{
    uint64_t after = 1;
    bool closes = true;

    *ret_height = 1;
    for (uint32_t i = n->object.n; i-- > 0;) {
        struct property *p = &n->object.properties[i];
        const struct node *value = &g->nodes[p->value];

        p->after = price_bounded(after);
        p->closes = closes;
        if (!p->required)
            continue;
        closes = false;
        after = price_bounded(after + text_price(g, p->key, 0) + value->price);
        *ret_height = MAX(*ret_height, 1 + value->height);
    }
    n->object.open = price_bounded(after);
    return price_bounded(1 + after);
}

/* Weigh a node by what those inside it weigh so far. True: it changed. */
static bool weigh(struct grammar *g, struct node *n)
{
    uint32_t price = GRAMMAR_NEVER, height = 0;
    const struct node *inside;

    if (n->kind <= NODE_NUMBER && n->height == 0)
        return false;                 /* nothing is inside it that could have changed */
    switch (n->kind) {
    case NODE_TEXT:
        price = texts_price(g, n->text.lo, n->text.hi, 0);
        break;
    case NODE_STRING:
        price = price_bounded((uint64_t)n->string.min + 2);
        break;
    case NODE_PATTERN:
        price = n->pattern->distance[0] + 2u;
        break;
    case NODE_NUMBER:
        price = number_missing(n->number, (struct number_state){ 0 });
        break;
    case NODE_OBJECT:
        price = object_price(g, n, &height);
        break;
    case NODE_ARRAY:
        price = price_bounded(1 + (uint64_t)array_rest(g, n, 0));
        height = 1 + (n->array.min ? g->nodes[n->array.item].height : 0);
        break;
    case NODE_MAP:
        price = 2;
        height = 1;
        break;
    case NODE_ANY_OF:
        height = GRAMMAR_NEVER;
        for (uint32_t i = 0; i < n->any_of.n; i++) {
            inside = &g->nodes[n->any_of.alternatives[i]];
            price = MIN(price, inside->price);
            height = MIN(height, inside->height);
        }
        break;
    }
    height = MIN(height, GRAMMAR_NEVER);
    if (price == n->price && height == n->height)
        return false;
    n->price = price;
    n->height = height;
    return true;
}

/* Gather what the alternatives of an anyOf come to in the end, in *steps steps at most. mark, stack and out (n_nodes).
 * Returns how many. */
static size_t gather(struct grammar *g, uint32_t from, uint32_t *mark, uint32_t *stack, uint32_t *out, size_t *steps)
{
    size_t top = 0, n_out = 0;

    stack[top++] = from;
    mark[from] = from;
    while (top && *steps) {
        const struct node *n = &g->nodes[stack[--top]];
        *steps -= MIN(*steps, 1 + (n->kind == NODE_ANY_OF ? n->any_of.n : 0));
        if (n->kind != NODE_ANY_OF) {
            out[n_out++] = (uint32_t)(n - g->nodes);
            continue;
        }
        for (uint32_t i = n->any_of.n; i-- > 0;) {
            uint32_t inside = n->any_of.alternatives[i];
            if (mark[inside] == from)
                continue;
            mark[inside] = from;
            stack[top++] = inside;
        }
    }
    return n_out;
}

/* Make every anyOf one of what is none. One that is an alternative of its own goes without saying. */
static int straighten(struct grammar *g, struct err *err)
{
    cleanup(freep) uint32_t *mark = calloc(g->n_nodes, sizeof(*mark));
    cleanup(freep) uint32_t *stack = calloc(g->n_nodes, sizeof(*stack));
    cleanup(freep) uint32_t *out = calloc(g->n_nodes, sizeof(*out));
    cleanup(freep) struct node *flat = calloc(g->n_nodes, sizeof(*flat));
    size_t steps = MAX_STEPS;

    if (!mark || !stack || !out || !flat)
        return -ENOMEM;
    for (uint32_t i = 0; i < g->n_nodes; i++) {
        size_t n;

        flat[i] = g->nodes[i];
        if (flat[i].kind != NODE_ANY_OF)
            continue;
        n = gather(g, i, mark, stack, out, &steps);
        if (!steps)
            return err_set(err, -EINVAL, "too many alternatives");
        flat[i].any_of.n = (uint32_t)n;
        flat[i].any_of.alternatives = arena_alloc(&g->arena, n * sizeof(*out));
        if (!flat[i].any_of.alternatives)
            return -ENOMEM;
        if (n)
            memcpy(flat[i].any_of.alternatives, out, n * sizeof(*out));
    }
    memcpy(g->nodes, flat, g->n_nodes * sizeof(*flat));
    return 0;
}

static int price_texts(struct grammar *g, const struct lexicon *prices, struct err *err)
{
    for (size_t i = 0; i < g->n_texts; i++) {
        struct text *t = &g->texts[i];

        t->price = arena_alloc(&g->arena, t->len * sizeof(*t->price));
        if (!t->price)
            return -ENOMEM;
        if (!lexicon_price(prices, t->s, t->len, t->price))
            return err_set(err, -EINVAL, "this model's vocabulary cannot write a text in it");
    }
    return 0;
}

int grammar_finish(struct grammar *g, size_t root, const struct lexicon *prices, struct err *err)
{
    bool changed = true;
    int r = straighten(g, err);

    if (r == 0 && prices)
        r = price_texts(g, prices, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < g->n_nodes; i++)
        g->nodes[i].price = g->nodes[i].height = GRAMMAR_NEVER;
    /* From endless down to the least, as paths are weighed; nodes stand before what is inside them. */
    while (changed) {
        changed = false;
        for (size_t i = g->n_nodes; i-- > 0;)
            changed |= weigh(g, &g->nodes[i]);
    }
    g->root = root;
    if (g->nodes[root].price >= GRAMMAR_NEVER || g->nodes[root].height > GRAMMAR_DEPTH)
        return err_set(err, -EINVAL, "nothing that can be written satisfies it");
    return 0;
}
