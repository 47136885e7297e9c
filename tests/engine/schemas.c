/* See schemas.h: schemas made up from a seed, and whether a document is valid by one, which has nothing to do with how
 * the engine reads either. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <pcre2.h>
#include <string.h>
#include <time.h>

#include "tests/engine/schemas.h"

int schema_compile(struct grammar **ret, const json_t *schema, const struct lexicon *prices, struct err *err)
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

int schema_reads(const struct grammar *g, const char *s, size_t len)
{
    enum { THREADS = 3 * GRAMMAR_THREADS, FRAMES = 1 << 16 };
    static struct thread threads[THREADS];
    static struct outer frames[FRAMES];
    struct reading r = { .grammar = g, .threads = threads, .frames = frames, .max_threads = THREADS,
                         .max_frames = FRAMES };
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

/* ---- making them up ---- */

static unsigned draw(uint64_t *seed, unsigned n)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (unsigned)((z ^ z >> 31) % n);
}

static const char *const names[] = {
    "name", "id", "a", "ab", "abc", "", "city", "tags", "kind", "value", "b\"c", "\\", "\xc3\xa9t\xc3\xa9",
        "\xe6\x97\xa5\xe6\x9c\xac",
    "\xf0\x9f\x99\x82", "x y", "$ref", "line\nbreak", "items", "}", "{", ",", "next", "child",
};
static const char *const patterns[] = {
    "^[a-z]{2,5}$", "^\\d+$", "b", "^(foo|bar|baz)+$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", "^\\s*$", "[0-9]{3}", "^.{1,4}$",
    "^[^\"\\\\]*$", "^\"+$", "^\xc3\xa9?[\xce\xb1-\xcf\x89]+$", "a|b$", "^(a|ab)(c|bcd)*$", "^\\w+\\.\\w+$",
        "^(?:x{2}y?){1,3}$",
};
static const char *const formats[] = {
    "date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
};

static json_t *make(uint64_t *seed, unsigned depth, unsigned n_defs);

static json_t *make_number(uint64_t *seed, bool integer)
{
    static const double steps[] = { 0.01, 0.5, 1, 2, 3, 7, 0.25, 10, 100, 1.5 };
    json_t *s = json_pack("{s:s}", "type", integer ? "integer" : "number");
    int low = (int)draw(seed, 2000) - 1000, span = (int)draw(seed, draw(seed, 2) ? 30 : 3000);

    if (draw(seed, 3) == 0)
        json_object_set_new(s, draw(seed, 2) ? "minimum" : "exclusiveMinimum",
                            draw(seed, 2) && !integer ? json_real(low / 8.0) : json_integer(low));
    if (draw(seed, 3) == 0)
        json_object_set_new(s, draw(seed, 2) ? "maximum" : "exclusiveMaximum", json_integer(low + span));
    if (draw(seed, 4) == 0)
        json_object_set_new(s, "multipleOf", json_real(steps[draw(seed, ARRAY_SIZE(steps))]));
    return s;
}

static json_t *make_string(uint64_t *seed)
{
    json_t *s = json_pack("{s:s}", "type", "string");
    unsigned min = draw(seed, 4);

    switch (draw(seed, 6)) {
    case 0:
        json_object_set_new(s, "pattern", json_string(patterns[draw(seed, ARRAY_SIZE(patterns))]));
        break;
    case 1:
        json_object_set_new(s, "format", json_string(formats[draw(seed, ARRAY_SIZE(formats))]));
        return s;
    }
    if (draw(seed, 4) == 0)
        json_object_set_new(s, "minLength", json_integer(min));
    if (draw(seed, 3) == 0)
        json_object_set_new(s, "maxLength", json_integer(min + draw(seed, 12)));
    return s;
}

static json_t *make_value(uint64_t *seed)
{
    switch (draw(seed, 8)) {
    case 0: return json_integer(draw(seed, 20));
    case 1: return json_integer((int)draw(seed, 2000) * -37);
    case 2: return json_real(draw(seed, 100) / 8.0);
    case 3: return json_null();
    case 4: return json_pack("[i, s]", draw(seed, 9), names[draw(seed, ARRAY_SIZE(names))]);
    case 5: return json_pack("{s:b}", names[draw(seed, ARRAY_SIZE(names))], draw(seed, 2));
    default: return json_string(names[draw(seed, ARRAY_SIZE(names))]);
    }
}

static json_t *make_object(uint64_t *seed, unsigned depth, unsigned n_defs)
{
    json_t *properties = json_object(), *required = json_array(), *s;
    unsigned n = draw(seed, depth ? 5 : 2), all = draw(seed, 2);

    for (unsigned i = 0; i < n; i++) {
        const char *name = names[draw(seed, ARRAY_SIZE(names))];
        if (json_object_get(properties, name))
            continue;
        json_object_set_new(properties, name, make(seed, depth ? depth - 1 : 0, n_defs));
        if (all || draw(seed, 2))
            json_array_append_new(required, json_string(name));
    }
    s = json_pack("{s:s, s:o, s:o}", "type", "object", "properties", properties, "required", required);
    if (draw(seed, 4))
        json_object_set_new(s, "additionalProperties", json_false());
    return s;
}

static json_t *make_array(uint64_t *seed, unsigned depth, unsigned n_defs)
{
    json_t *s = json_pack("{s:s, s:o}", "type", "array", "items", make(seed, depth ? depth - 1 : 0, n_defs));
    unsigned min = draw(seed, 3);

    if (draw(seed, 2))
        json_object_set_new(s, "minItems", json_integer(min));
    if (draw(seed, 2))
        json_object_set_new(s, "maxItems", json_integer(min + draw(seed, 4)));
    return s;
}

static json_t *make_list(uint64_t *seed, const char *keyword, unsigned depth, unsigned n_defs)
{
    json_t *list = json_array();

    for (unsigned i = 1 + draw(seed, 4); i; i--)
        json_array_append_new(list, depth == 99 ? make_value(seed) : make(seed, depth ? depth - 1 : 0, n_defs));
    return json_pack("{s:o}", keyword, list);
}

static json_t *make(uint64_t *seed, unsigned depth, unsigned n_defs)
{
    char ref[32];

    switch (draw(seed, depth ? 16 : 9)) {
    case 0: return make_number(seed, true);
    case 1: return make_number(seed, false);
    case 2: return json_pack("{s:s}", "type", draw(seed, 2) ? "boolean" : "null");
    case 3: return make_list(seed, "enum", 99, 0);
    case 4: return json_pack("{s:o}", "const", make_value(seed));
    case 5: return draw(seed, 3) ? json_pack("{s:[s,s]}", "type", "string", "null")
                                 : json_pack("{s:[s,s,s]}", "type", "integer", "boolean", "number");
    case 9: case 10: case 11: return make_object(seed, depth, n_defs);
    case 12: return make_array(seed, depth, n_defs);
    case 13: return make_list(seed, "anyOf", depth, n_defs);
    case 14:
        snprintf(ref, sizeof(ref), "#/$defs/d%u", draw(seed, n_defs + 1));
        return json_pack("{s:s}", "$ref", draw(seed, n_defs + 1) < n_defs && ref[9] - '0' < (int)n_defs ? ref : "#");
    case 15: return draw(seed, 3) ? make_array(seed, depth, n_defs)
                                  : draw(seed, 2) ? json_object()
                                                  : json_pack("{s:s, s:o}", "type", "object", "additionalProperties",
                                                              make(seed, depth - 1, n_defs));
    default: return make_string(seed);
    }
}

json_t *schema_make(uint64_t seed)
{
    unsigned n_defs = draw(&seed, 3), depth = 1 + draw(&seed, 4);
    json_t *defs = json_object(), *s = make_object(&seed, depth, n_defs);
    char name[16];

    for (unsigned i = 0; i < n_defs; i++) {
        snprintf(name, sizeof(name), "d%u", i);
        json_object_set_new(defs, name, make(&seed, depth, n_defs));
    }
    json_object_set_new(s, "$defs", defs);
    return s;
}

/* ---- judging documents ---- */

static bool equal(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *v;
    size_t i;

    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    if (json_typeof(a) != json_typeof(b))
        return false;
    if (json_is_array(a)) {
        if (json_array_size(a) != json_array_size(b))
            return false;
        json_array_foreach(a, i, v)
            if (!equal(v, json_array_get(b, i)))
                return false;
        return true;
    }
    if (json_is_object(a)) {
        if (json_object_size(a) != json_object_size(b))
            return false;
        json_object_foreach((json_t *)(uintptr_t)a, key, v)
            if (!json_object_get(b, key) || !equal(v, json_object_get(b, key)))
                return false;
        return true;
    }
    return json_equal(a, b);
}

static bool matches(const char *regex, const char *s)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_DOLLAR_ENDONLY,
                                   &code, &at,
                                   NULL);
    pcre2_match_data *m;
    int r;

    cr_assert(re, "%s", regex);
    m = pcre2_match_data_create(1, NULL);
    r = pcre2_match(re, (PCRE2_SPTR)s, strlen(s), 0, 0, m, NULL);
    pcre2_match_data_free(m);
    pcre2_code_free(re);
    return r >= 0;
}

static bool is_date(const char *s, size_t len)
{
    char copy[16] = "", back[16];
    struct tm tm = { 0 }, again;
    time_t t;

    if (len != 10)
        return false;
    memcpy(copy, s, len);
    if (!strptime(copy, "%Y-%m-%d", &tm))
        return false;
    t = timegm(&tm);
    gmtime_r(&t, &again);
    strftime(back, sizeof(back), "%Y-%m-%d", &again);
    return strcmp(copy, back) == 0;
}

static bool is_format(const char *format, const char *s)
{
    static const char time[] = "^([01][0-9]|2[0-3])(:[0-5][0-9]){2}(\\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";
    static const char host[] = "^(?=.{1,253}$)(?!-)[a-zA-Z0-9-]{1,63}(?<!-)(\\.(?!-)[a-zA-Z0-9-]{1,63}(?<!-))*$";
    uint8_t address[16];
    const char *at;

    if (!strcmp(format, "date"))
        return is_date(s, strlen(s));
    if (!strcmp(format, "date-time"))
        return strlen(s) > 11 && is_date(s, 10) && s[10] == 'T' && matches(time, s + 11);
    if (!strcmp(format, "time"))
        return matches(time, s);
    if (!strcmp(format, "duration"))
        return matches("^P(?!$)(\\d+W|(\\d+Y)?(\\d+M)?(\\d+D)?(T(?=\\d)(\\d+H)?(\\d+M)?(\\d+S)?)?)$", s);
    if (!strcmp(format, "ipv4"))
        return inet_pton(AF_INET, s, address) == 1;
    if (!strcmp(format, "ipv6"))
        return inet_pton(AF_INET6, s, address) == 1;
    if (!strcmp(format, "hostname"))
        return matches(host, s);
    if (!strcmp(format, "uuid"))
        return matches("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", s);
    if (!strcmp(format, "uri"))
        return matches("^[a-z]+://[^\\s/?#]+[^\\s]*$", s);
    at = strrchr(s, '@');
    return !strcmp(format, "email") && at && at > s && *s != '.' && at[-1] != '.' && !strstr(s, "..") &&
        matches(host, at + 1);
}

static bool is_type(const char *type, const json_t *v)
{
    double n = json_number_value(v);

    return !strcmp(type, "object") ? json_is_object(v) : !strcmp(type, "array") ? json_is_array(v)
         : !strcmp(type, "string") ? json_is_string(v) : !strcmp(type, "null") ? json_is_null(v)
         : !strcmp(type, "boolean") ? json_is_boolean(v) : !strcmp(type, "number") ? json_is_number(v)
         : json_is_number(v) && n == floor(n);
}

static size_t characters(const char *s)
{
    size_t n = 0;

    for (; *s; s++)
        n += (*s & 0xc0) != 0x80;
    return n;
}

static double number_of(const json_t *schema, const char *key, double otherwise)
{
    const json_t *v = json_object_get(schema, key);

    return v ? json_number_value(v) : otherwise;
}

static bool number_holds(const json_t *schema, double n)
{
    double step = number_of(schema, "multipleOf", 0), times = step ? n / step : 0;

    return n >= number_of(schema, "minimum", -INFINITY) && n <= number_of(schema, "maximum", INFINITY) &&
           n > number_of(schema, "exclusiveMinimum", -INFINITY) &&
           n < number_of(schema, "exclusiveMaximum", INFINITY) &&
           fabs(times - round(times)) <= 1e-9 * fmax(1, fabs(times));
}

static bool string_holds(const json_t *schema, const char *s)
{
    const char *pattern = json_string_value(json_object_get(schema, "pattern"));
    const char *format = json_string_value(json_object_get(schema, "format"));
    size_t n = characters(s);

    return (double)n >= number_of(schema, "minLength", 0) && (double)n <= number_of(schema, "maxLength", INFINITY) &&
           (!pattern || matches(pattern, s)) && (!format || is_format(format, s));
}

static bool array_holds(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *items = json_object_get(schema, "items"), *item;
    double n = (double)json_array_size(v);
    size_t i;

    json_array_foreach(v, i, item)
        if (items && !schema_holds(root, items, item))
            return false;
    return n >= number_of(schema, "minItems", 0) && n <= number_of(schema, "maxItems", INFINITY);
}

static bool object_holds(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *others = json_object_get(schema, "additionalProperties");
    const json_t *name;
    const char *key;
    json_t *member;
    size_t i;

    json_array_foreach(json_object_get(schema, "required"), i, name)
        if (!json_object_get(v, json_string_value(name)))
            return false;
    json_object_foreach((json_t *)(uintptr_t)v, key, member) {
        const json_t *s = json_object_get(properties, key) ? json_object_get(properties, key) : others;
        if (s && !schema_holds(root, s, member))
            return false;
    }
    return true;
}

bool schema_holds(const json_t *root, const json_t *schema, const json_t *v)
{
    const char *ref = json_string_value(json_object_get(schema, "$ref"));
    const json_t *type = json_object_get(schema, "type"), *list, *one;
    bool found = !type || (json_is_string(type) && is_type(json_string_value(type), v));
    size_t i;

    if (json_is_boolean(schema))
        return json_is_true(schema);
    json_array_foreach(type, i, one)
        found |= is_type(json_string_value(one), v);
    if (!found)
        return false;
    one = ref && ref[1] ? json_object_get(json_object_get(root, "$defs"), strrchr(ref, '/') + 1) : root;
    if (ref && !schema_holds(root, one, v))
        return false;
    if ((one = json_object_get(schema, "const")) && !equal(one, v))
        return false;
    if ((list = json_object_get(schema, "enum"))) {
        found = false;
        json_array_foreach(list, i, one)
            found |= equal(one, v);
        if (!found)
            return false;
    }
    if ((list = json_object_get(schema, "anyOf"))) {
        found = false;
        json_array_foreach(list, i, one)
            found |= schema_holds(root, one, v);
        if (!found)
            return false;
    }
    return json_is_number(v) ? number_holds(schema, json_number_value(v))
         : json_is_string(v) ? string_holds(schema, json_string_value(v))
         : json_is_array(v)  ? array_holds(root, schema, v)
         : json_is_object(v) ? object_holds(root, schema, v) : true;
}
