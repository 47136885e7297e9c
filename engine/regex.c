/* Regular expressions of JSON Schema, read into a tree: ECMA-262's syntax as far as it is regular.
 *
 * A pattern matches anywhere in a string, so each of its alternatives stands between two runs of anything, unless it
 * begins with ^ and ends with $; anchors elsewhere are refused. Dialects differ in what \d, \w, \s and the dot contain
 * (ASCII or Unicode, which line ends), so those are narrowed to what every dialect agrees on; a string that is made
 * from the tree then matches whoever reads the pattern. Characters that only \uXXXX could write in JSON are left out
 * too. */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "engine/regex.h"
#include "engine/utf8.h"

#define MAX_GROUPS 32            /* inside each other */
#define MAX_REPEAT 1000
#define CODE_POINTS 0x110000u

struct parser {
    const char *start, *s;
    struct arena *arena;
    size_t *work;
    unsigned depth;
    struct err *err;
    int r;                            /* the failure, once there is one */
};

static struct regex *fail(struct parser *p, const char *expected)
{
    if (!p->r)
        p->r = err_set(p->err, -EINVAL, "byte %zu: %s", (size_t)(p->s - p->start) + 1, expected);
    return NULL;
}

static void *take(struct parser *p, size_t n)
{
    void *m = n <= *p->work ? arena_alloc(p->arena, n) : NULL;

    if (!m && !p->r)
        p->r = n <= *p->work ? -ENOMEM : err_set(p->err, -EINVAL, "too complicated");
    *p->work -= MIN(n, *p->work);
    return m;
}

static struct regex *new_node(struct parser *p, enum regex_kind kind)
{
    struct regex *x = take(p, sizeof(*x));

    if (x)
        x->kind = kind;
    return x;
}

/* ---- sets of characters ---- */

static bool set_add(struct parser *p, struct regex *set, uint32_t lo, uint32_t hi)
{
    if (set->n_ranges == set->cap_ranges) {
        unsigned cap = MAX(8u, set->cap_ranges * 2);
        struct regex_range *ranges = take(p, cap * sizeof(*ranges));
        if (!ranges)
            return false;
        if (set->n_ranges)
            memcpy(ranges, set->ranges, set->n_ranges * sizeof(*ranges));
        set->ranges = ranges;
        set->cap_ranges = cap;
    }
    set->ranges[set->n_ranges++] = (struct regex_range){ lo, hi };
    return true;
}

static int range_order(const void *a, const void *b)
{
    const struct regex_range *x = a, *y = b;

    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

/* The same set, or what of it is up to `max`, less or only what is in it, in order and without overlaps. */
static struct regex *set_tidy(struct parser *p, struct regex *set, bool negate, uint32_t max)
{
    struct regex *out = new_node(p, REGEX_SET);
    uint32_t next = 0;

    if (!out)
        return NULL;
    if (set->n_ranges)
        qsort(set->ranges, set->n_ranges, sizeof(*set->ranges), range_order);
    for (unsigned i = 0; i < set->n_ranges; i++) {
        struct regex_range r = set->ranges[i];
        uint32_t from = negate ? next : MAX(next, r.lo), to = negate ? r.lo - 1 : MIN(r.hi, max);
        if ((!negate || r.lo) && from <= to && !set_add(p, out, from, MIN(to, max)))
            return NULL;
        next = MAX(next, r.hi + 1);
    }
    return negate && next <= max && !set_add(p, out, next, max) ? NULL : out;
}

/* What can be written: no surrogates, no control character without a short escape. */
static struct regex *set_writable(struct parser *p, struct regex *set)
{
    static const struct regex_range writable[] = {
        { 0x08, 0x0a }, { 0x0c, 0x0d }, { 0x20, 0xd7ff }, { 0xe000, 0x10ffff },
    };
    struct regex *out = new_node(p, REGEX_SET);

    for (unsigned i = 0; out && i < set->n_ranges; i++)
        for (unsigned k = 0; k < ARRAY_SIZE(writable); k++) {
            uint32_t lo = MAX(set->ranges[i].lo, writable[k].lo), hi = MIN(set->ranges[i].hi, writable[k].hi);
            if (lo <= hi && !set_add(p, out, lo, hi))
                return NULL;
        }
    return out;
}

static const struct regex_range digits[] = { { '0', '9' } };
static const struct regex_range word[] = { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } };
static const struct regex_range space[] = { { '\t', '\r' }, { ' ', ' ' } };

/* Add the class that the letter behind a backslash names. 1: did, 0: it names none. Negated ones are ASCII only. */
static int set_add_class(struct parser *p, struct regex *set, char letter)
{
    const struct regex_range *r = (letter | 32) == 'd' ? digits : (letter | 32) == 'w' ? word : space;
    unsigned n = (letter | 32) == 'd' ? 1 : (letter | 32) == 'w' ? 4 : 2;
    uint32_t next = 0;

    if (!letter || !strchr("dDwWsS", letter))
        return 0;
    for (unsigned i = 0; i < n; i++) {
        if (letter >= 'a' ? !set_add(p, set, r[i].lo, r[i].hi) : next < r[i].lo && !set_add(p, set, next, r[i].lo - 1))
            return 0;
        next = r[i].hi + 1;
    }
    if (letter < 'a')
        set_add(p, set, next, 0x7e);
    return 1;
}

static struct regex *set_any(struct parser *p)
{
    struct regex *set = new_node(p, REGEX_SET);

    return set && set_add(p, set, 0, CODE_POINTS - 1) ? set_writable(p, set) : NULL;
}

/* ---- characters ---- */

static bool read_hex(struct parser *p, int n, uint32_t *ret)
{
    uint32_t v = 0;

    for (; n; n--, p->s++) {
        char c = *p->s;
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0)
            return false;
        v = v * 16 + (uint32_t)digit;
    }
    *ret = v;
    return true;
}

/* The character behind a backslash that names no class. */
static bool read_escape(struct parser *p, uint32_t *ret)
{
    static const char letters[] = "tnvfr0", values[] = "\t\n\v\f\r";
    const char *at = *p->s ? strchr(letters, *p->s) : NULL;
    char c = *p->s;

    if (at) {
        *ret = (uint8_t)values[at - letters];
        p->s++;
        return true;
    }
    if (c == 'x' || c == 'u') {
        p->s++;
        if (c == 'u' && *p->s == '{')
            return !fail(p, "\\u{…} is not supported");
        return read_hex(p, c == 'x' ? 2 : 4, ret) || fail(p, "expected hexadecimal digits");
    }
    if (!c || (c >= '1' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c & 0x80)
        return fail(p, "this escape is not supported");
    *ret = (uint8_t)c;
    p->s++;
    return true;
}

static bool read_character(struct parser *p, uint32_t *ret)
{
    int k;

    if (*p->s == '\\') {
        p->s++;
        return read_escape(p, ret);
    }
    k = utf8_scan(p->s, strlen(p->s), ret);
    if (k <= 0)
        return fail(p, "not UTF-8");
    p->s += k;
    return true;
}

/* Behind a '['. */
static struct regex *parse_set(struct parser *p)
{
    struct regex *set = new_node(p, REGEX_SET);
    bool negate = *p->s == '^', classes = false;

    p->s += negate;
    while (set && *p->s && *p->s != ']') {
        uint32_t lo = 0, hi;

        if (*p->s == '\\' && set_add_class(p, set, p->s[1])) {
            classes = true;
            p->s += 2;
            if (*p->s == '-' && p->s[1] && p->s[1] != ']')
                return fail(p, "a class cannot begin a range");
            continue;
        }
        if (*p->s == '\\' && p->s[1] == 'b') {
            lo = '\b';
            p->s += 2;
        } else if (!read_character(p, &lo)) {
            return NULL;
        }
        hi = lo;
        if (*p->s == '-' && p->s[1] && p->s[1] != ']') {
            p->s++;
            if (*p->s == '\\' && p->s[1] && strchr("dDwWsSb", p->s[1]))
                return fail(p, "a class cannot end a range");
            if (!read_character(p, &hi))
                return NULL;
        }
        if (hi < lo)
            return fail(p, "a range's end stands before its beginning");
        if (p->r || !set_add(p, set, lo, hi))
            return NULL;
    }
    if (!set || p->r)
        return NULL;
    if (*p->s != ']')
        return fail(p, "expected ]");
    p->s++;
    set = set_tidy(p, set, negate, negate && classes ? 0x7e : CODE_POINTS - 1);
    return set ? set_writable(p, set) : NULL;
}

/* ---- structure ---- */

static struct regex *parse_alternatives(struct parser *p);

/* Behind a '('. */
static struct regex *parse_group(struct parser *p)
{
    struct regex *x;

    if (*p->s == '?') {
        if (p->s[1] == '<' && p->s[2] != '=' && p->s[2] != '!' && strchr(p->s, '>'))
            p->s = strchr(p->s, '>') + 1;
        else if (p->s[1] == ':')
            p->s += 2;
        else
            return fail(p, "lookarounds and flags are not supported");
    }
    if (++p->depth > MAX_GROUPS)
        return fail(p, "too many groups inside each other");
    x = parse_alternatives(p);
    p->depth--;
    if (!x)
        return NULL;
    if (*p->s != ')')
        return fail(p, "expected )");
    p->s++;
    return x;
}

static struct regex *parse_atom(struct parser *p)
{
    struct regex *x;
    uint32_t c;

    switch (*p->s) {
    case '(':
        p->s++;
        return parse_group(p);
    case '[':
        p->s++;
        return parse_set(p);
    case '.':
        p->s++;
        x = new_node(p, REGEX_SET);
        if (!x || !set_add(p, x, '\n', '\n') || !set_add(p, x, '\r', '\r') || !set_add(p, x, 0x85, 0x85) ||
            !set_add(p, x, 0x2028, 0x2029))
            return NULL;
        x = set_tidy(p, x, true, CODE_POINTS - 1);
        return x ? set_writable(p, x) : NULL;
    case '^': case '$':
        return fail(p, "^ and $ are supported at the beginning and the end only");
    case '*': case '+': case '?': case '{':
        return fail(p, "nothing to repeat");
    case '\\':
        x = new_node(p, REGEX_SET);
        if (x && set_add_class(p, x, p->s[1])) {
            p->s += 2;
            return set_writable(p, x);
        }
        break;
    }
    x = new_node(p, REGEX_SET);
    if (!x || !read_character(p, &c) || !set_add(p, x, c, c))
        return NULL;
    return set_writable(p, x);
}

static bool read_count(struct parser *p, unsigned *ret)
{
    unsigned v = 0;
    const char *start = p->s;

    for (; *p->s >= '0' && *p->s <= '9' && v <= MAX_REPEAT; p->s++)
        v = v * 10 + (unsigned)(*p->s - '0');
    *ret = v;
    return p->s > start && v <= MAX_REPEAT;
}

/* An atom and what repeats it. */
static struct regex *parse_term(struct parser *p)
{
    struct regex *x = parse_atom(p), *repeat;
    unsigned min = 0, max = REGEX_ENDLESS;

    if (!x || !*p->s || !strchr("*+?{", *p->s))
        return x;
    switch (*p->s++) {
    case '+': min = 1; break;
    case '?': max = 1; break;
    case '{':
        if (!read_count(p, &min))
            return fail(p, "expected a count of at most 1000");
        max = min;
        if (*p->s == ',') {
            p->s++;
            max = REGEX_ENDLESS;
            if (*p->s != '}' && !read_count(p, &max))
                return fail(p, "expected a count of at most 1000");
        }
        if (*p->s != '}' || max < min)
            return fail(p, "expected } behind two counts in order");
        p->s++;
    }
    if (*p->s == '?')
        p->s++;                       /* how greedy changes nothing in what matches */
    if (*p->s && strchr("*+{", *p->s))
        return fail(p, "a repetition cannot be repeated");
    repeat = new_node(p, REGEX_REPEAT);
    if (repeat) {
        repeat->first = x;
        repeat->min = min;
        repeat->max = max;
    }
    return repeat;
}

/* Terms up to the end of an alternative. */
static struct regex *parse_sequence(struct parser *p)
{
    struct regex *sequence = new_node(p, REGEX_SEQUENCE), **last = sequence ? &sequence->first : NULL;

    while (last && *p->s && *p->s != '|' && *p->s != ')') {
        if (p->depth == 0 && *p->s == '$' && (!p->s[1] || p->s[1] == '|'))
            break;
        *last = parse_term(p);
        if (!*last)
            return NULL;
        last = &(*last)->next;
    }
    return sequence;
}

/* What stands before or behind an alternative that is not anchored there. */
static struct regex *anything(struct parser *p)
{
    struct regex *x = new_node(p, REGEX_REPEAT);

    if (x) {
        x->first = set_any(p);
        x->max = REGEX_ENDLESS;
    }
    return x && x->first ? x : NULL;
}

/* An alternative of the whole pattern, with its anchors. */
static struct regex *parse_anchored(struct parser *p)
{
    struct regex *before = NULL, *x, *whole, **last;

    if (*p->s == '^')
        p->s++;
    else
        before = anything(p);
    x = parse_sequence(p);
    whole = x ? new_node(p, REGEX_SEQUENCE) : NULL;
    if (!whole)
        return NULL;
    last = &whole->first;
    if (before) {
        *last = before;
        last = &before->next;
    }
    *last = x;
    if (*p->s == '$')
        p->s++;
    else
        x->next = anything(p);
    return p->r ? NULL : whole;
}

static struct regex *parse_alternatives(struct parser *p)
{
    struct regex *any_of = new_node(p, REGEX_ANY_OF), **last = any_of ? &any_of->first : NULL;

    while (last) {
        *last = p->depth ? parse_sequence(p) : parse_anchored(p);
        if (!*last)
            return NULL;
        last = &(*last)->next;
        if (*p->s != '|')
            break;
        p->s++;
    }
    return any_of;
}

int regex_parse(struct regex **ret, const char *text, struct arena *a, size_t *work, struct err *err)
{
    struct parser p = { .start = text, .s = text, .arena = a, .work = work, .err = err };
    struct regex *x = parse_alternatives(&p);

    if (x && *p.s)
        fail(&p, "expected the end");
    if (p.r < 0 || !x)
        return p.r ? p.r : -ENOMEM;
    *ret = x;
    return 0;
}
