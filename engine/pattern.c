/* From a regular expression's tree to a table: first a graph of single bytes whose choices are free (Thompson's
 * construction), then sets of its states as the table's states. Both are counted against the caller's work, and the
 * table's size is bounded, so a pattern whose table explodes is refused and not waited for. At last every state from
 * which no match can be reached is cut off: whoever follows the table never comes to an end without one.
 *
 * Sources: K. Thompson, "Regular expression search algorithm", CACM 11(6), 1968; ranges of code points as ranges of
 * bytes after R. Cox, "Regular Expression Matching in the Wild", 2010. */
#include <errno.h>
#include <string.h>

#include "engine/grammar.h"
#include "engine/regex.h"

#define MAX_GRAPH 16384
#define MAX_STATES 4096
#define NONE UINT32_MAX
#define FAR UINT16_MAX

/* ---- the graph ---- */

/* lo <= hi: a byte of that range goes on to a. Else a choice between a and b, either of which may be NONE. */
struct vertex { uint8_t lo, hi; uint32_t a, b; };

struct graph {
    struct vertex *v;
    uint32_t n, cap, match;
    size_t *work;
    struct err *err;
    int r;
};

static uint32_t vertex_new(struct graph *g, uint8_t lo, uint8_t hi, uint32_t a, uint32_t b)
{
    if (g->n == MAX_GRAPH || !*g->work) {
        if (!g->r)
            g->r = err_set(g->err, -EINVAL, "too complicated");
        return NONE;
    }
    if (g->n == g->cap) {
        uint32_t cap = MAX(256u, g->cap * 2);
        struct vertex *v = reallocarray(g->v, cap, sizeof(*v));
        if (!v) {
            g->r = -ENOMEM;
            return NONE;
        }
        g->v = v;
        g->cap = cap;
    }
    --*g->work;
    g->v[g->n] = (struct vertex){ lo, hi, a, b };
    return g->n++;
}

static uint32_t choice(struct graph *g, uint32_t a, uint32_t b)
{
    return a == NONE ? b : b == NONE ? a : vertex_new(g, 1, 0, a, b);
}

static int encode(uint32_t c, uint8_t out[4])
{
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (uint8_t)(0x80 | (c & 0x3f));
    out[0] = (uint8_t)(n == 1 ? c : c | (0xf00u >> n & 0xf0));
    return n;
}

/* Any of these characters, then `to`. The range is cut until its ends differ in whole bytes only. */
static uint32_t emit_range(struct graph *g, uint32_t lo, uint32_t hi, uint32_t to)
{
    static const uint32_t ends[] = { 0x7f, 0x7ff, 0xffff };
    uint8_t from[4], until[4];
    int n;

    for (size_t i = 0; i < ARRAY_SIZE(ends); i++)
        if (lo <= ends[i] && hi > ends[i])
            return choice(g, emit_range(g, lo, ends[i], to), emit_range(g, ends[i] + 1, hi, to));
    n = encode(lo, from);
    for (int i = 1; i < n; i++) {
        uint32_t low = (1u << 6 * i) - 1;
        if ((lo & ~low) == (hi & ~low))
            continue;
        if (lo & low)
            return choice(g, emit_range(g, lo, lo | low, to), emit_range(g, (lo | low) + 1, hi, to));
        if ((hi & low) != low)
            return choice(g, emit_range(g, lo, (hi & ~low) - 1, to), emit_range(g, hi & ~low, hi, to));
    }
    encode(hi, until);
    while (n-- && to != NONE)
        to = vertex_new(g, from[n], until[n], to, NONE);
    return to;
}

/* The vertex from which x, then `to`, is read. NONE: nothing can be, or g->r says why. */
static uint32_t emit(struct graph *g, const struct regex *x, uint32_t to);

/* The members of a sequence are kept as a list from its front and needed from its end. */
static uint32_t emit_sequence(struct graph *g, const struct regex *x, uint32_t to)
{
    const struct regex **items;
    size_t n = 0;

    for (const struct regex *i = x; i; i = i->next)
        n++;
    items = calloc(n + 1, sizeof(*items));
    if (!items) {
        g->r = -ENOMEM;
        return NONE;
    }
    n = 0;
    for (const struct regex *i = x; i; i = i->next)
        items[n++] = i;
    while (n && to != NONE)
        to = emit(g, items[--n], to);
    free(items);
    return to;
}

static uint32_t emit_repeat(struct graph *g, const struct regex *x, uint32_t to)
{
    uint32_t start = to;

    if (x->max == REGEX_ENDLESS) {
        uint32_t loop = vertex_new(g, 1, 0, NONE, to);
        uint32_t inside = loop == NONE ? NONE : emit(g, x->first, loop);
        if (loop != NONE)
            g->v[loop].a = inside;
        start = loop;
    } else {
        for (unsigned i = x->min; i < x->max && start != NONE; i++)
            start = choice(g, emit(g, x->first, start), to);
    }
    for (unsigned i = 0; i < x->min && start != NONE; i++)
        start = emit(g, x->first, start);
    return start;
}

static uint32_t emit(struct graph *g, const struct regex *x, uint32_t to)
{
    uint32_t start = NONE;

    if (g->r)
        return NONE;
    switch (x->kind) {
    case REGEX_SET:
        for (unsigned i = 0; i < x->n_ranges; i++)
            start = choice(g, emit_range(g, x->ranges[i].lo, x->ranges[i].hi, to), start);
        return start;
    case REGEX_SEQUENCE:
        return emit_sequence(g, x->first, to);
    case REGEX_ANY_OF:
        for (const struct regex *i = x->first; i; i = i->next)
            start = choice(g, emit(g, i, to), start);
        return start;
    case REGEX_REPEAT:
        return emit_repeat(g, x, to);
    }
    return NONE;
}

/* ---- the table ---- */

/* Sets of vertices that read a byte or are the match, each sorted, one behind the other; a hash finds one again. */
struct sets {
    const struct graph *graph;
    uint32_t *members, *begins;       /* begins (n + 1) */
    size_t n_members, cap_members, n;
    uint16_t *slots;                  /* open addressing, at most half full; 0: empty, else number + 1 */
    uint32_t *stack, *scratch;        /* (graph->n) */
    uint32_t *seen, round;            /* (graph->n): in which round it was met */
    size_t *work;
};
#define SLOTS (MAX_STATES * 2)

static void sets_done(struct sets *s)
{
    free(s->members);
    free(s->begins);
    free(s->slots);
    free(s->stack);
    free(s->scratch);
    free(s->seen);
}

/* Follow the free choices from v; what they lead to goes to scratch from n on. Returns how many stand there. */
static size_t closure(struct sets *s, uint32_t v, size_t n)
{
    size_t top = 0;

    s->stack[top++] = v;
    while (top) {
        const struct vertex *x = &s->graph->v[v = s->stack[--top]];
        if (s->seen[v] == s->round)
            continue;
        s->seen[v] = s->round;
        *s->work -= MIN(1, *s->work);
        if (x->lo <= x->hi || v == s->graph->match) {
            s->scratch[n++] = v;
            continue;
        }
        /* Each vertex once takes one from the stack and adds two, hence its size. */
        if (x->b != NONE && s->seen[x->b] != s->round)
            s->stack[top++] = x->b;
        if (x->a != NONE && s->seen[x->a] != s->round)
            s->stack[top++] = x->a;
    }
    return n;
}

static int number_order(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* The number of the set of n vertices in scratch, which may be new; -EINVAL: one too many. */
static int sets_find(struct sets *s, size_t n)
{
    uint64_t hash = n;

    qsort(s->scratch, n, sizeof(*s->scratch), number_order);
    *s->work -= MIN(4 * n, *s->work);
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ s->scratch[i]) * 0x9e3779b97f4a7c15u;
    for (size_t i = hash >> 40;; i++) {
        uint16_t *slot = &s->slots[i % SLOTS];
        size_t at = *slot - 1u;
        if (*slot && s->begins[at + 1] - s->begins[at] == n &&
            memcmp(s->members + s->begins[at], s->scratch, n * sizeof(*s->scratch)) == 0)
            return (int)at;
        if (*slot)
            continue;
        if (s->n == MAX_STATES)
            return -EINVAL;
        if (s->n_members + n > s->cap_members) {
            size_t cap = 2 * (s->n_members + n);
            uint32_t *members = reallocarray(s->members, cap, sizeof(*members));
            if (!members)
                return -ENOMEM;
            s->members = members;
            s->cap_members = cap;
        }
        memcpy(s->members + s->n_members, s->scratch, n * sizeof(*s->scratch));
        s->n_members += n;
        s->begins[++s->n] = (uint32_t)s->n_members;
        *slot = (uint16_t)s->n;
        return (int)s->n - 1;
    }
}

/* Bytes that no vertex tells apart. */
static unsigned classify(const struct graph *g, uint8_t class_of[256])
{
    bool cut[257] = { false };
    unsigned n = 0;

    for (uint32_t i = 0; i < g->n; i++)
        if (g->v[i].lo <= g->v[i].hi)
            cut[g->v[i].lo] = cut[g->v[i].hi + 1] = true;
    for (int b = 0; b < 256; b++) {
        n += b > 0 && cut[b];
        class_of[b] = (uint8_t)n;
    }
    return n + 1;
}

static struct pattern *pattern_alloc(struct arena *a, size_t n, size_t n_classes)
{
    struct pattern *p = arena_alloc(a, sizeof(*p));

    if (!p)
        return NULL;
    p->n = (uint16_t)n;
    p->n_classes = (uint16_t)n_classes;
    p->next = arena_alloc(a, n * n_classes * sizeof(*p->next));
    p->distance = arena_alloc(a, n * sizeof(*p->distance));
    return p->next && p->distance ? p : NULL;
}

/* Fill distances, which are 0 at matches and FAR elsewhere, and cut off what never matches. */
static int pattern_weigh(struct pattern *p, size_t *work, struct err *err)
{
    uint8_t weight[256] = { 0 };
    bool changed = true;

    /* Quotes, backslashes and line ends take two bytes in JSON; a class costs what its cheapest byte does. */
    for (int b = 255; b >= 0; b--)
        if (!weight[p->class_of[b]] || weight[p->class_of[b]] == 2)
            weight[p->class_of[b]] = b < 0x20 || b == '"' || b == '\\' ? 2 : 1;
    while (changed) {
        changed = false;
        if (*work < (size_t)p->n * p->n_classes)
            return err_set(err, -EINVAL, "too complicated");
        *work -= (size_t)p->n * p->n_classes;
        for (size_t s = p->n; s-- > 0;)
            for (size_t c = 0; c < p->n_classes; c++) {
                uint16_t to = p->next[s * p->n_classes + c];
                unsigned far = to == PATTERN_DEAD || p->distance[to] == FAR ? FAR : p->distance[to] + weight[c];
                if (far < p->distance[s]) {
                    p->distance[s] = (uint16_t)far;
                    changed = true;
                }
            }
    }
    if (p->distance[0] == FAR)
        return err_set(err, -EINVAL, "no string matches");
    for (size_t i = 0; i < (size_t)p->n * p->n_classes; i++)
        if (p->next[i] != PATTERN_DEAD && p->distance[p->next[i]] == FAR)
            p->next[i] = PATTERN_DEAD;
    return 0;
}

/* Fill `next`, row by row as the states are found; rows of MAX_STATES states at most. */
static int determine(struct sets *s, uint16_t *next, const uint8_t class_of[256], unsigned n_classes)
{
    for (size_t state = 0; state < s->n; state++)
        for (unsigned c = 0, byte = 0; c < n_classes; c++) {
            size_t n = 0;
            int found;

            while (class_of[byte] != c)
                byte++;
            s->round++;
            for (uint32_t i = s->begins[state]; i < s->begins[state + 1]; i++) {
                const struct vertex *v = &s->graph->v[s->members[i]];
                if (v->lo <= byte && byte <= v->hi)
                    n = closure(s, v->a, n);
            }
            *s->work -= MIN(1 + s->begins[state + 1] - s->begins[state], *s->work);
            if (!*s->work)
                return -EINVAL;
            found = n ? sets_find(s, n) : PATTERN_DEAD;
            if (found < 0)
                return found;
            next[state * n_classes + c] = (uint16_t)found;
        }
    return 0;
}

static int table_new(struct pattern **ret, const struct graph *g, uint32_t start, struct arena *a, struct err *err)
{
    cleanup(sets_done) struct sets s = { .graph = g, .work = g->work };
    cleanup(freep) uint16_t *next = NULL;
    uint8_t class_of[256];
    unsigned n_classes = classify(g, class_of);
    struct pattern *p;
    int r;

    s.begins = calloc(MAX_STATES + 1, sizeof(*s.begins));
    s.slots = calloc(SLOTS, sizeof(*s.slots));
    s.stack = calloc(g->n, 2 * sizeof(*s.stack));
    s.scratch = calloc(g->n, sizeof(*s.scratch));
    s.seen = calloc(g->n, sizeof(*s.seen));
    next = calloc((size_t)MAX_STATES * n_classes, sizeof(*next));
    if (!s.begins || !s.slots || !s.stack || !s.scratch || !s.seen || !next)
        return -ENOMEM;
    s.round = 1;
    r = sets_find(&s, closure(&s, start, 0));
    r = r < 0 ? r : determine(&s, next, class_of, n_classes);
    if (r < 0)
        return r == -EINVAL ? err_set(err, r, "too complicated") : r;

    p = pattern_alloc(a, s.n, n_classes);
    if (!p)
        return -ENOMEM;
    memcpy(p->class_of, class_of, sizeof(class_of));
    memcpy(p->next, next, s.n * n_classes * sizeof(*next));
    for (size_t i = 0; i < s.n; i++) {
        p->distance[i] = FAR;
        for (uint32_t k = s.begins[i]; k < s.begins[i + 1]; k++)
            if (s.members[k] == g->match)
                p->distance[i] = 0;
    }
    r = pattern_weigh(p, g->work, err);
    if (r == 0)
        *ret = p;
    return r;
}

int pattern_new(struct pattern **ret, const char *regex, struct arena *a, size_t *work, struct err *err)
{
    struct graph g = { .work = work, .err = err };
    struct regex *tree;
    uint32_t start;
    int r = regex_parse(&tree, regex, a, work, err);

    if (r < 0)
        return r;
    g.match = vertex_new(&g, 1, 0, NONE, NONE);
    start = g.match == NONE ? NONE : emit(&g, tree, g.match);
    r = g.r ? g.r : start == NONE ? err_set(err, -EINVAL, "no string matches") : table_new(ret, &g, start, a, err);
    free(g.v);
    return r;
}

int pattern_both(struct pattern **ret, const struct pattern *x, const struct pattern *y, struct arena *a, size_t *work,
                 struct err *err)
{
    size_t pairs = (size_t)x->n * y->n, n = 1, n_classes = 0;
    cleanup(freep) uint16_t *number = calloc(pairs, sizeof(*number));   /* of a pair, plus one */
    cleanup(freep) uint32_t *pair = calloc(MAX_STATES, sizeof(*pair));
    cleanup(freep) uint16_t *next = NULL;
    uint8_t class_of[256], byte_of[256];
    struct pattern *p;
    int r;

    for (int b = 0; b < 256; b++) {
        size_t c = 0;
        while (c < n_classes &&
               (x->class_of[byte_of[c]] != x->class_of[b] || y->class_of[byte_of[c]] != y->class_of[b]))
            c++;
        if (c == n_classes)
            byte_of[n_classes++] = (uint8_t)b;
        class_of[b] = (uint8_t)c;
    }
    next = calloc(MAX_STATES * n_classes, sizeof(*next));
    if (!number || !pair || !next)
        return -ENOMEM;
    number[0] = 1;
    for (size_t s = 0; s < n; s++)
        for (size_t c = 0; c < n_classes; c++) {
            uint16_t u = pattern_step(x, (uint16_t)(pair[s] / y->n), byte_of[c]);
            uint16_t v = pattern_step(y, (uint16_t)(pair[s] % y->n), byte_of[c]);
            size_t to = (size_t)u * y->n + v;

            *work -= MIN(1, *work);
            next[s * n_classes + c] = PATTERN_DEAD;
            if (u == PATTERN_DEAD || v == PATTERN_DEAD)
                continue;
            if (!number[to] && (n == MAX_STATES || !*work))
                return err_set(err, -EINVAL, "too complicated");
            if (!number[to]) {
                pair[n] = (uint32_t)to;
                number[to] = (uint16_t)++n;
            }
            next[s * n_classes + c] = (uint16_t)(number[to] - 1);
        }
    p = pattern_alloc(a, n, n_classes);
    if (!p)
        return -ENOMEM;
    memcpy(p->class_of, class_of, sizeof(class_of));
    memcpy(p->next, next, n * n_classes * sizeof(*next));
    for (size_t s = 0; s < n; s++)
        p->distance[s] = x->distance[pair[s] / y->n] || y->distance[pair[s] % y->n] ? FAR : 0;
    r = pattern_weigh(p, work, err);
    if (r == 0)
        *ret = p;
    return r;
}

const char *pattern_of_format(const char *format)
{
#define DATE "([12]\\d{3}-((01|03|05|07|08|10|12)-(0[1-9]|[12]\\d|3[01])|(04|06|09|11)-(0[1-9]|[12]\\d|30)|" \
             "02-(0[1-9]|1\\d|2[0-8]))|20([02468][048]|[13579][26])-02-29)"
#define TIME "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)"
#define LABEL "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define BYTE "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define HEX "[0-9a-f]"
    static const struct { const char *name, *regex; } formats[] = {
        { "date-time", "^" DATE "T" TIME "$" },
        { "date", "^" DATE "$" },
        { "time", "^" TIME "$" },
        { "duration", "^P(\\d{1,4}W|(\\d{1,4}D|\\d{1,4}M(\\d{1,4}D)?|\\d{1,4}Y(\\d{1,4}M(\\d{1,4}D)?)?)?T"
                      "(\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?|\\d{1,4}M(\\d{1,4}S)?|\\d{1,4}S)|"
                      "(\\d{1,4}D|\\d{1,4}M(\\d{1,4}D)?|\\d{1,4}Y(\\d{1,4}M(\\d{1,4}D)?)?))$" },
        { "email", "^[A-Za-z0-9_+-]{1,20}(\\.[A-Za-z0-9_+-]{1,20}){0,2}@(" LABEL "\\.){1,2}[A-Za-z]{2,12}$" },
        { "hostname", "^" LABEL "(\\." LABEL "){0,2}$" },
        { "ipv4", "^(" BYTE "\\.){3}" BYTE "$" },
        { "ipv6", "^((" HEX "{1,4}:){7}" HEX "{1,4}|(" HEX "{1,4}:){1,6}:" HEX "{1,4}|::(" HEX "{1,4})?)$" },
        { "uuid", "^" HEX "{8}-" HEX "{4}-4" HEX "{3}-[89ab]" HEX "{3}-" HEX "{12}$" },
        { "uri", "^https?://" LABEL "(\\." LABEL "){0,2}(:[1-9]\\d{0,3})?(/[A-Za-z0-9_~.-]{0,40}){0,4}"
                 "(\\?[A-Za-z0-9_~.=&-]{0,60})?$" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
        if (strcmp(format, formats[i].name) == 0)
            return formats[i].regex;
    return NULL;
}
