/* JSON (RFC 8259) in two passes: a recursive check that trusts nothing, then walks that trust the check. */
#include "engine/json_view.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include "engine/utf8.h"

#define MAX_DEPTH 32
#define MAX_NUMBER 64

struct check { const char *begin, *at, *end, *why; };

/* ---- the check -------------------------------------------------------------------------------------------------- */

static bool fail(struct check *c, const char *why)
{
    if (!c->why)
        c->why = why;
    return false;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && is_space(*p))
        p++;
    return p;
}

static bool accept(struct check *c, char want)
{
    c->at = skip_space(c->at, c->end);
    if (c->at == c->end || *c->at != want)
        return false;
    c->at++;
    return true;
}

/* The value of four hexadecimal digits, or -1. */
static int hex4(const char *p, const char *end)
{
    int v = 0;

    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        if (!isxdigit((unsigned char)p[i]))
            return -1;
        v = v * 16 + (is_digit(p[i]) ? p[i] - '0' : (p[i] | 0x20) - 'a' + 10);
    }
    return v;
}

/* What stands behind a backslash at p: its bytes in UTF-8 to out, and how many characters of the text it took. 0: no
 * escape that JSON knows, or half of a surrogate pair. */
static size_t unescape(const char *p, const char *end, char out[4], size_t *ret_bytes)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *simple;
    size_t taken = 5;
    int32_t cp, low;
    int more;

    if (p == end)
        return 0;
    simple = *p ? strchr(from, *p) : NULL;
    if (simple) {
        *out = to[simple - from];
        *ret_bytes = 1;
        return 1;
    }
    cp = *p == 'u' ? hex4(p + 1, end) : -1;
    if (cp >= 0xd800 && cp < 0xdc00) {
        low = end - p >= 11 && p[5] == '\\' && p[6] == 'u' ? hex4(p + 7, end) : -1;
        cp = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00) : -1;
        taken = 11;
    }
    if (cp < 0 || (cp >= 0xdc00 && cp < 0xe000))
        return 0;
    if (cp < 0x80) {
        *out = (char)cp;
        *ret_bytes = 1;
        return taken;
    }
    more = cp < 0x800 ? 1 : cp < 0x10000 ? 2 : 3;
    *ret_bytes = (size_t)more + 1;
    for (int i = more; i > 0; i--, cp >>= 6)
        out[i] = (char)(0x80 | (cp & 0x3f));
    *out = (char)((0xff00 >> (more + 1)) | cp);
    return taken;
}

static bool check_string(struct check *c)
{
    char bytes[4];
    size_t n;

    while (c->at < c->end && *c->at != '"') {
        int k = 1;

        if ((unsigned char)*c->at < ' ')
            return fail(c, "a control character in a string");
        if (*c->at == '\\') {
            n = unescape(c->at + 1, c->end, bytes, &(size_t){ 0 });
            if (!n)
                return fail(c, "an escape that is none");
            k += (int)n;
        } else if (*c->at & 0x80) {
            k = utf8_scan(c->at, (size_t)(c->end - c->at), NULL);
            if (k <= 0)
                return fail(c, "not UTF-8");
        }
        c->at += k;
    }
    if (c->at == c->end)
        return fail(c, "a string without an end");
    c->at++;
    return true;
}

static void take_digits(struct check *c)
{
    while (c->at < c->end && is_digit(*c->at))
        c->at++;
}

static bool check_number(struct check *c)
{
    const char *begin = c->at, *digits;

    if (*c->at == '-')
        c->at++;
    digits = c->at;
    take_digits(c);
    if (c->at == digits || (*digits == '0' && c->at - digits > 1))
        return fail(c, "no value");
    if (c->at < c->end && *c->at == '.') {
        digits = ++c->at;
        take_digits(c);
        if (c->at == digits)
            return fail(c, "a number without an end");
    }
    if (c->at < c->end && (*c->at | 0x20) == 'e') {
        c->at++;
        if (c->at < c->end && (*c->at == '+' || *c->at == '-'))
            c->at++;
        digits = c->at;
        take_digits(c);
        if (c->at == digits)
            return fail(c, "a number without an end");
    }
    return c->at - begin <= MAX_NUMBER || fail(c, "a number longer than 64 characters");
}

static bool check_word(struct check *c)
{
    static const char *const words[] = { "true", "false", "null" };

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        size_t n = strlen(words[i]);

        if ((size_t)(c->end - c->at) >= n && !memcmp(c->at, words[i], n)) {
            c->at += n;
            return true;
        }
    }
    return check_number(c);
}

static bool check_value(struct check *c, int depth)
{
    bool object;

    c->at = skip_space(c->at, c->end);
    if (c->at == c->end)
        return fail(c, "the file ends where a value should begin");
    if (accept(c, '"'))
        return check_string(c);
    if (*c->at != '{' && *c->at != '[')
        return check_word(c);
    if (depth == MAX_DEPTH)
        return fail(c, "more than 32 levels");
    object = *c->at++ == '{';
    if (accept(c, object ? '}' : ']'))
        return true;
    do {
        if (object && (!accept(c, '"') || !check_string(c) || !accept(c, ':')))
            return fail(c, "no member of an object");
        if (!check_value(c, depth + 1))
            return false;
    } while (accept(c, ','));
    return accept(c, object ? '}' : ']') || fail(c, "an object or array that is not closed here");
}

int json_view_open(struct json_view *ret, const void *data, size_t size, const char *name, struct err *err)
{
    struct check c = { .begin = data, .at = data, .end = (const char *)data + size };
    const char *begin = skip_space(c.at, c.end), *end;

    if (!check_value(&c, 0))
        return err_set(err, -EINVAL, "%s: byte %zu: %s", name, (size_t)(c.at - c.begin), c.why);
    end = c.at;
    c.at = skip_space(c.at, c.end);
    if (c.at < c.end)
        return err_set(err, -EINVAL, "%s: byte %zu: more after the value", name, (size_t)(c.at - c.begin));
    *ret = (struct json_view){ begin, (size_t)(end - begin) };
    return 0;
}

/* ---- walking ---------------------------------------------------------------------------------------------------- */

/* Behind the string whose first quote is at p. */
static const char *behind_string(const char *p)
{
    for (p++; *p != '"'; p++)
        p += *p == '\\';
    return p + 1;
}

static const char *behind_value(const char *p, const char *end)
{
    size_t depth = 0;

    if (*p == '"')
        return behind_string(p);
    if (*p != '{' && *p != '[') {
        while (p < end && *p != ',' && *p != ']' && *p != '}' && !is_space(*p))
            p++;
        return p;
    }
    do {
        if (*p == '"') {
            p = behind_string(p);
            continue;
        }
        depth += *p == '{' || *p == '[';
        depth -= *p == '}' || *p == ']';
        p++;
    } while (depth);
    return p;
}

struct json_walk json_walk(struct json_view v)
{
    bool object = *v.s == '{';

    if (!object && *v.s != '[')
        return (struct json_walk){ 0 };
    return (struct json_walk){ .at = v.s + 1, .end = v.s + v.len - 1, .object = object };
}

static struct json_view take_value(struct json_walk *w)
{
    const char *begin = w->at;

    w->at = behind_value(begin, w->end);
    return (struct json_view){ begin, (size_t)(w->at - begin) };
}

bool json_walk_next(struct json_walk *w)
{
    if (!w->at)
        return false;
    w->at = skip_space(w->at, w->end);
    if (w->at < w->end && *w->at == ',')
        w->at = skip_space(w->at + 1, w->end);
    if (w->at == w->end)
        return false;
    if (w->object) {
        w->key = take_value(w);
        w->at = skip_space(skip_space(w->at, w->end) + 1, w->end);       /* the colon */
    }
    w->value = take_value(w);
    return true;
}

int json_view_get(struct json_view v, const char *key, struct json_view *ret, struct err *err)
{
    struct json_view found = { 0 };

    if (*v.s != '{')
        return 0;
    for (struct json_walk w = json_walk(v); json_walk_next(&w);) {
        if (!json_view_is(w.key, key))
            continue;
        if (found.s)
            return err_set(err, -EINVAL, "key %s stands twice", key);
        found = w.value;
    }
    if (!found.s || *found.s == 'n')
        return 0;
    *ret = found;
    return 1;
}

size_t json_view_count(struct json_view v)
{
    size_t n = 0;

    for (struct json_walk w = json_walk(v); json_walk_next(&w);)
        n++;
    return n;
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

bool json_view_u64(struct json_view v, uint64_t *ret)
{
    uint64_t n = 0;

    for (size_t i = 0; i < v.len; i++)
        if (!is_digit(v.s[i]) || __builtin_mul_overflow(n, 10, &n) ||
            __builtin_add_overflow(n, (uint64_t)(v.s[i] - '0'), &n))
            return false;
    *ret = n;
    return true;
}

bool json_view_double(struct json_view v, double *ret)
{
    char copy[MAX_NUMBER + 1] = "";
    double d;

    if (json_view_kind(v) != '0')
        return false;
    memcpy(copy, v.s, v.len);                /* the check saw that it is no longer */
    d = strtod(copy, NULL);
    if (!isfinite(d))
        return false;
    *ret = d;
    return true;
}

bool json_view_bool(struct json_view v, bool *ret)
{
    if (*v.s != 't' && *v.s != 'f')
        return false;
    *ret = *v.s == 't';
    return true;
}

/* The next bytes of a string's text; 0 at its end. */
static size_t next_bytes(const char **p, const char *end, char out[4])
{
    size_t n = 1;

    if (*p == end)
        return 0;
    if (**p != '\\') {
        *out = *(*p)++;
        return 1;
    }
    *p += 1 + unescape(*p + 1, end, out, &n);
    return n;
}

size_t json_view_text(struct json_view v, char *out)
{
    const char *p = v.s + 1, *end = v.s + v.len - 1;
    size_t n = 0, k;
    char bytes[4];

    while (p < end && (k = next_bytes(&p, end, bytes))) {
        memcpy(out + n, bytes, k);
        n += k;
    }
    return n;
}

bool json_view_is(struct json_view v, const char *text)
{
    const char *p = v.s + 1, *end = v.s + v.len - 1;
    size_t len = strlen(text), k;
    char bytes[4];

    if (*v.s != '"')
        return false;
    while ((k = next_bytes(&p, end, bytes))) {
        if (len < k || memcmp(text, bytes, k))
            return false;
        text += k;
        len -= k;
    }
    return !len;
}
