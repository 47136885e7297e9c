/* What may be written, as nodes that refer to each other, and reading bytes by them.
 *
 * What was written so far can often be read in several ways (an `anyOf`, a property that may be left out), so a reading
 * is a set of threads. A thread is the terminal it is in, by value, and the objects and arrays around it, as a list of
 * frames from the inside out that are never changed: threads share what they have in common.
 *
 * Every thread can be finished. Nodes that nothing fits are found beforehand (their price is endless) and never entered;
 * an object or array is entered only when the ones it must hold still find room below the greatest depth; patterns and
 * numbers refuse a byte that leads nowhere. So threads may be dropped for lack of room: less can be written, and all of
 * it is right. A thread's price is how many tokens its end takes at least, which is how a document is closed in time. */
#include <errno.h>
#include <string.h>

#include "engine/grammar.h"
#include "engine/lexicon.h"

#define MAX_STEPS (1u << 20)          /* between alternatives, while they are gathered */
#define DONE UINT32_MAX               /* a thread's node: the answer is whole */

/* Nodes and texts that every grammar has. */
enum { ANY_TEXT, ANY_STRING, N_NODES };
enum { OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY, COMMA, COLON };

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

static uint32_t bounded(uint64_t price)
{
    return (uint32_t)MIN(price, GRAMMAR_NEVER);
}

static uint32_t text_price(const struct grammar *g, uint32_t text, uint32_t at)
{
    const struct text *t = &g->texts[text];

    return t->price && at < t->len ? t->price[at] : t->len - at;
}

static uint32_t texts_price(const struct grammar *g, uint32_t lo, uint32_t hi, uint32_t at)
{
    uint32_t price = GRAMMAR_NEVER;

    for (; lo < hi; lo++)
        price = MIN(price, text_price(g, lo, at));
    return price;
}

/* What is left of an array that holds n items. */
static uint32_t array_rest(const struct grammar *g, const struct node *n, uint64_t count)
{
    uint64_t more = n->array.min > count ? n->array.min - count : 0, price = 1;

    if (more)
        price += more * (1 + (uint64_t)g->nodes[n->array.item].price) - (count == 0);
    return bounded(price);
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

        p->after = bounded(after);
        p->closes = closes;
        if (!p->required)
            continue;
        closes = false;
        after = bounded(after + text_price(g, p->key, 0) + value->price);
        *ret_height = MAX(*ret_height, 1 + value->height);
    }
    n->object.open = bounded(after);
    return bounded(1 + after);
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
        price = bounded((uint64_t)n->string.min + 2);
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
        price = bounded(1 + (uint64_t)array_rest(g, n, 0));
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

/* ---- strings of any characters ---- */

/* Where in a string; those from STRING_MORE_1 on are inside a character, which was counted at its first byte. */
enum string_at { STRING_BEGIN, STRING_INSIDE, STRING_MORE_1, STRING_MORE_2, STRING_MORE_3, STRING_E0, STRING_ED, STRING_F0,
                 STRING_F4, STRING_ESCAPE, STRING_HEX_4, STRING_HEX_3, STRING_HEX_2, STRING_HEX_1, STRING_ZERO_3,
                 STRING_ZERO_2, STRING_ZERO_1, STRING_SURROGATE, STRING_DEAD };

static int hex_value(uint8_t c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* The first byte of a character; quotes are the caller's. */
static enum string_at string_first(uint8_t c)
{
    if (c < 0x20)
        return STRING_DEAD;
    if (c < 0x80)
        return c == '\\' ? STRING_ESCAPE : STRING_INSIDE;
    if (c < 0xc2 || c > 0xf4)
        return STRING_DEAD;
    switch (c) {
    case 0xe0: return STRING_E0;
    case 0xed: return STRING_ED;
    case 0xf0: return STRING_F0;
    case 0xf4: return STRING_F4;
    }
    return c < 0xe0 ? STRING_MORE_1 : c < 0xf0 ? STRING_MORE_2 : STRING_MORE_3;
}

/* A later byte of one. \u0000 and surrogates are left out: few readers take the one, and pairs need no escape. */
static enum string_at string_later(enum string_at at, uint8_t c)
{
    static const struct { uint8_t lo, hi, next; } bytes[] = {
        [STRING_MORE_1] = { 0x80, 0xbf, STRING_INSIDE }, [STRING_MORE_2] = { 0x80, 0xbf, STRING_MORE_1 },
        [STRING_MORE_3] = { 0x80, 0xbf, STRING_MORE_2 }, [STRING_E0] = { 0xa0, 0xbf, STRING_MORE_1 },
        [STRING_ED] = { 0x80, 0x9f, STRING_MORE_1 }, [STRING_F0] = { 0x90, 0xbf, STRING_MORE_2 },
        [STRING_F4] = { 0x80, 0x8f, STRING_MORE_2 },
    };
    int hex = hex_value(c);

    if (at < STRING_ESCAPE)
        return c >= bytes[at].lo && c <= bytes[at].hi ? (enum string_at)bytes[at].next : STRING_DEAD;
    if (at == STRING_ESCAPE)
        return c == 'u' ? STRING_HEX_4 : c && strchr("\"\\/bfnrt", c) ? STRING_INSIDE : STRING_DEAD;
    if (hex < 0)
        return STRING_DEAD;
    switch (at) {
    case STRING_HEX_4: return hex == 0 ? STRING_ZERO_3 : hex == 13 ? STRING_SURROGATE : STRING_HEX_3;
    case STRING_HEX_3: return STRING_HEX_2;
    case STRING_HEX_2: return STRING_HEX_1;
    case STRING_ZERO_3: return hex ? STRING_HEX_2 : STRING_ZERO_2;
    case STRING_ZERO_2: return hex ? STRING_HEX_1 : STRING_ZERO_1;
    case STRING_ZERO_1: return hex ? STRING_INSIDE : STRING_DEAD;
    case STRING_SURROGATE: return hex < 8 ? STRING_HEX_2 : STRING_DEAD;
    default: return STRING_INSIDE;
    }
}

/* Bytes to the end of the character it is in. */
static unsigned string_missing(uint32_t at)
{
    static const uint8_t missing[] = {
        [STRING_MORE_1] = 1, [STRING_MORE_2] = 2, [STRING_MORE_3] = 3, [STRING_E0] = 2, [STRING_ED] = 2, [STRING_F0] = 3,
        [STRING_F4] = 3, [STRING_ESCAPE] = 1, [STRING_HEX_4] = 4, [STRING_HEX_3] = 3, [STRING_HEX_2] = 2,
        [STRING_HEX_1] = 1, [STRING_ZERO_3] = 3, [STRING_ZERO_2] = 2, [STRING_ZERO_1] = 1, [STRING_SURROGATE] = 3,
        [STRING_DEAD] = 0,
    };

    return missing[at];
}

/* ---- terminals ---- */

enum outcome { REFUSED, GOES_ON, IS_OVER };

static enum outcome string_step(const struct node *n, struct spot *s, uint8_t byte)
{
    enum string_at at = (enum string_at)s->at;

    if (at == STRING_BEGIN) {
        s->at = STRING_INSIDE;
        return byte == '"' ? GOES_ON : REFUSED;
    }
    if (at == STRING_INSIDE && byte == '"')
        return s->state >= n->string.min ? IS_OVER : REFUSED;
    if (at == STRING_INSIDE && n->string.max != UINT32_MAX && s->state >= n->string.max)
        return REFUSED;
    /* Counted as far as it matters, so that strings without bounds are alike. */
    if (at == STRING_INSIDE && (n->string.max != UINT32_MAX || s->state < n->string.min))
        s->state++;
    s->at = at == STRING_INSIDE ? string_first(byte) : string_later(at, byte);
    return s->at == STRING_DEAD ? REFUSED : GOES_ON;
}

enum pattern_at { PATTERN_BEGIN, PATTERN_INSIDE, PATTERN_ESCAPE };
static const char escaped[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";

static enum outcome pattern_read(const struct pattern *p, struct spot *s, uint8_t byte)
{
    uint16_t next;

    if (s->at == PATTERN_BEGIN) {
        s->at = PATTERN_INSIDE;
        return byte == '"' ? GOES_ON : REFUSED;
    }
    if (s->at == PATTERN_INSIDE && byte == '"')
        return p->distance[s->state] == 0 ? IS_OVER : REFUSED;
    if (s->at == PATTERN_INSIDE && byte == '\\') {
        s->at = PATTERN_ESCAPE;
        for (size_t i = 0; i < sizeof(meant) - 1; i++)
            if (pattern_step(p, (uint16_t)s->state, (uint8_t)meant[i]) != PATTERN_DEAD)
                return GOES_ON;
        return REFUSED;
    }
    if (s->at == PATTERN_ESCAPE) {
        const char *e = byte ? strchr(escaped, byte) : NULL;
        if (!e)
            return REFUSED;
        byte = (uint8_t)meant[e - escaped];
    } else if (byte < 0x20) {
        return REFUSED;
    }
    next = pattern_step(p, (uint16_t)s->state, byte);
    s->at = PATTERN_INSIDE;
    s->state = next;
    return next == PATTERN_DEAD ? REFUSED : GOES_ON;
}

/* Bytes to the string's end. Behind a backslash the cheapest of what it may stand for. */
static uint32_t pattern_price(const struct pattern *p, const struct spot *s)
{
    uint32_t best = GRAMMAR_NEVER;

    if (s->at != PATTERN_ESCAPE)
        return p->distance[s->state] + (s->at == PATTERN_BEGIN ? 2u : 1u);
    for (size_t i = 0; i < sizeof(meant) - 1; i++) {
        uint16_t next = pattern_step(p, (uint16_t)s->state, (uint8_t)meant[i]);
        if (next != PATTERN_DEAD)
            best = MIN(best, p->distance[next] + 2u);
    }
    return best;
}

/* A spot in texts[lo..hi), all of which begin alike up to `at`. */
static struct spot text_spot(uint32_t lo, uint32_t hi, uint32_t at)
{
    return (struct spot){ ANY_TEXT, at, lo | (uint64_t)hi << 32 };
}

/* The first of lo..hi whose byte at `at` is no less than c; one that ends there comes first. */
static uint32_t text_bound(const struct grammar *g, uint32_t lo, uint32_t hi, uint32_t at, int c)
{
    while (lo < hi) {
        uint32_t middle = lo + (hi - lo) / 2;
        const struct text *t = &g->texts[middle];
        if (t->len == at || (uint8_t)t->s[at] < c)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

static enum outcome text_step(const struct grammar *g, struct spot *s, uint8_t byte)
{
    uint32_t lo = (uint32_t)s->state, hi = (uint32_t)(s->state >> 32);

    lo = text_bound(g, lo, hi, s->at, byte);
    hi = text_bound(g, lo, hi, s->at, byte + 1);
    if (lo == hi)
        return REFUSED;
    *s = text_spot(lo, hi, s->at + 1);
    return hi - lo == 1 && g->texts[lo].len == s->at ? IS_OVER : GOES_ON;
}

static enum outcome spot_step(const struct grammar *g, struct spot *s, uint8_t byte)
{
    const struct node *n = &g->nodes[s->node];
    struct number_state number;

    switch (n->kind) {
    case NODE_TEXT:
        return text_step(g, s, byte);
    case NODE_STRING:
        return string_step(n, s, byte);
    case NODE_PATTERN:
        return pattern_read(n->pattern, s, byte);
    default:
        number = (struct number_state){ s->state, s->at };
        if (!number_step(n->number, &number, byte))
            return REFUSED;
        s->state = number.value;
        s->at = number.at;
        return GOES_ON;
    }
}

static uint32_t spot_price(const struct grammar *g, const struct spot *s)
{
    const struct node *n = &g->nodes[s->node];

    switch (n->kind) {
    case NODE_TEXT:
        return texts_price(g, (uint32_t)s->state, (uint32_t)(s->state >> 32), s->at);
    case NODE_STRING:
        return (s->at == STRING_BEGIN ? 2 : 1 + string_missing(s->at)) +
               (s->state < n->string.min ? n->string.min - (uint32_t)s->state : 0);
    case NODE_PATTERN:
        return pattern_price(n->pattern, s);
    default:
        return number_missing(n->number, (struct number_state){ s->state, s->at });
    }
}

/* Numbers do not say where they end, nor does a text that another one begins with. */
static bool spot_may_end(const struct grammar *g, const struct spot *s)
{
    const struct node *n = &g->nodes[s->node];

    if (n->kind == NODE_TEXT)
        return g->texts[(uint32_t)s->state].len == s->at;
    return n->kind == NODE_NUMBER && number_missing(n->number, (struct number_state){ s->state, s->at }) == 0;
}

/* ---- threads ---- */

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
        return s->at == AT_KEY ? bounded((uint64_t)g->nodes[p->value].price + p->after) : p->after;
    case NODE_ARRAY:
        if (s->at == AT_COMMA)
            return bounded((uint64_t)g->nodes[n->array.item].price + array_rest(g, n, s->state + 1));
        return array_rest(g, n, s->state);
    default:
        return s->at == AT_OPEN || s->at == AT_VALUE ? 1 : bounded(g->nodes[n->map.value].price +
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
    f->price = bounded((uint64_t)frame_rest(r->grammar, &f->spot) + (up ? up->price : 0));
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

static void add_bytes(uint64_t set[4], const char *bytes)
{
    for (; *bytes; bytes++)
        set[(uint8_t)*bytes / 64] |= 1ull << (uint8_t)*bytes % 64;
}

void thread_bytes(const struct grammar *g, const struct thread *t, uint64_t set[4])
{
    const struct node *n = thread_must_end(t) ? NULL : &g->nodes[t->top.node];
    uint32_t lo = (uint32_t)t->top.state, hi = (uint32_t)(t->top.state >> 32);

    if (!n)
        return;
    if (n->kind == NODE_NUMBER)
        add_bytes(set, "-.0123456789,}]");
    else if ((n->kind == NODE_STRING || n->kind == NODE_PATTERN) && t->top.at == 0)
        add_bytes(set, "\"");
    else if (n->kind != NODE_TEXT || hi - lo > 16)
        memset(set, 0xff, 4 * sizeof(*set));
    else
        for (; lo < hi; lo++)
            add_bytes(set, g->texts[lo].len == t->top.at ? ",}]" : (char[]){ g->texts[lo].s[t->top.at], 0 });
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
    return thread_must_end(t) ? 0 : bounded((uint64_t)spot_price(g, &t->top) + (t->up ? t->up->price : 0));
}

bool thread_in_string(const struct grammar *g, const struct thread *t, uint32_t *ret_room, uint32_t *ret_need)
{
    const struct node *n = thread_must_end(t) ? NULL : &g->nodes[t->top.node];

    if (!n || n->kind != NODE_STRING || t->top.at != STRING_INSIDE)
        return false;
    *ret_room = n->string.max == UINT32_MAX ? UINT32_MAX : n->string.max - (uint32_t)t->top.state;
    *ret_need = t->top.state < n->string.min ? n->string.min - (uint32_t)t->top.state : 0;
    return true;
}

int grammar_string_scan(const char *s, size_t len)
{
    enum string_at at = STRING_INSIDE;
    int n = 0;

    for (size_t i = 0; i < len; i++) {
        if (at == STRING_INSIDE && s[i] == '"')
            return -1;
        n += at == STRING_INSIDE;
        at = at == STRING_INSIDE ? string_first((uint8_t)s[i]) : string_later(at, (uint8_t)s[i]);
        if (at == STRING_DEAD)
            return -1;
    }
    return n;
}
