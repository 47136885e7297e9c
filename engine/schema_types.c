/* What a schema's type says: values of an enum, numbers and strings within bounds, arrays and objects.
 *
 * Narrowed is what may be: properties come in the schema's order and none that is not named, nothing is written longer
 * than it must be (no blanks, no exponents), and a string with a pattern stays within what all dialects agree on. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/schema.h"

#define MAX_PROPERTIES 5000
#define N_TYPES 7
#define MAX_NESTING 10             /* objects and arrays */
#define MAX_VALUES 1000            /* of all enums */
#define MAX_LARGE_VALUES 250       /* an enum of more strings is limited in bytes */
#define MAX_LARGE_BYTES 15000
#define MAX_STRING_BYTES 120000    /* of all names and values */
#define MAX_COUNT 1000000          /* of items and characters */
#define MAX_WIDE 128               /* longest string whose pattern is counted in characters and not in bytes of ASCII */

/* ---- values ---- */

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A node for one of these texts, sorted; equal ones count once. Frees the texts. */
static int64_t choice_add(struct grammar *g, char **texts, size_t n)
{
    uint32_t lo = (uint32_t)g->n_texts;
    int64_t r = 0;

    qsort(texts, n, sizeof(*texts), by_bytes);
    for (size_t i = 0; i < n && r >= 0; i++)
        if (!i || strcmp(texts[i], texts[i - 1]) != 0)
            r = grammar_text(g, texts[i], strlen(texts[i]));
    for (size_t i = 0; i < n; i++)
        free(texts[i]);
    return r < 0 ? r : grammar_node(g, (struct node){ .kind = NODE_TEXT, .text = { lo, (uint32_t)g->n_texts } });
}

static unsigned type_of(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return OBJECT;
    case JSON_ARRAY: return ARRAY;
    case JSON_STRING: return STRING;
    case JSON_INTEGER: return NUMBER | INTEGER;
    case JSON_REAL: return NUMBER | (json_real_value(v) == (double)(int64_t)json_real_value(v) ? INTEGER : 0);
    case JSON_NULL: return NIL;
    default: return BOOLEAN;
    }
}

/* One of `n` values, of which those of a type in `allowed` count. */
static int64_t values_add(struct compiler *c, json_t *const *values, size_t n, unsigned allowed, const struct place *at)
{
    cleanup(freep) char **texts = calloc(n + 1, sizeof(*texts));
    size_t kept = 0, bytes = 0;
    int64_t r = texts ? schema_count(c, at, &c->n_values, n, MAX_VALUES, "values of enums") : -ENOMEM;

    for (size_t i = 0; i < n && r == 0; i++) {
        if (!(type_of(values[i]) & allowed))
            continue;
        texts[kept] = json_dumps(values[i], JSON_COMPACT | JSON_ENCODE_ANY);
        if (!texts[kept])
            r = -ENOMEM;
        else
            bytes += strlen(texts[kept++]);
    }
    if (r == 0)
        r = schema_count(c, at, &c->n_bytes, bytes, MAX_STRING_BYTES, "bytes of names and values");
    if (r == 0 && n > MAX_LARGE_VALUES && bytes > MAX_LARGE_BYTES)
        r = schema_refuse(c, at, "enum", "more than 15000 bytes in more than 250 values");
    if (r == 0 && !kept)
        r = schema_refuse(c, at, NULL, "no value is of the type");
    if (r == 0)
        return choice_add(c->g, texts, kept);
    for (size_t i = 0; i < kept; i++)
        free(texts[i]);
    return r;
}

int64_t schema_add_values(struct compiler *c, const json_t *schema, unsigned allowed, const struct place *at)
{
    json_t *value = json_object_get(schema, "const"), *list = json_object_get(schema, "enum"), *v;
    cleanup(freep) json_t **values = NULL;
    size_t i;

    if (value)
        return values_add(c, &value, 1, allowed, at);
    if (!json_is_array(list) || !json_array_size(list))
        return schema_refuse(c, at, "enum", "expected an array of at least one value");
    values = calloc(json_array_size(list), sizeof(*values));
    if (!values)
        return -ENOMEM;
    json_array_foreach(list, i, v)
        values[i] = v;
    return values_add(c, values, i, allowed, at);
}

/* One of up to three words, NULL: no more. */
static int64_t words_add(struct grammar *g, const char *a, const char *b, const char *c)
{
    const char *const words[] = { a, b, c };
    char *texts[3] = { NULL };
    size_t n = 0;

    for (; n < 3 && words[n]; n++) {
        texts[n] = strdup(words[n]);
        if (!texts[n])
            break;
    }
    if (n == 3 || !words[n])
        return choice_add(g, texts, n);
    while (n--)
        free(texts[n]);
    return -ENOMEM;
}

/* ---- numbers and strings ---- */

static int64_t number_add(struct compiler *c, const json_t *schema, bool integer, const struct place *at)
{
    struct number *n = arena_alloc(&c->g->arena, sizeof(*n));
    struct err why = { "" };
    int r = n ? number_init(n, schema, integer, &why) : -ENOMEM;

    if (r < 0)
        return r == -EINVAL ? schema_refuse(c, at, NULL, why.msg) : r;
    return grammar_node(c->g, (struct node){ .kind = NODE_NUMBER, .number = n });
}

/* A count of items or characters: 1 there, 0 not. */
static int count_read(const struct compiler *c, const json_t *schema, const char *key, const struct place *at,
    uint32_t *ret)
{
    const json_t *v = json_object_get(schema, key);
    double n = json_number_value(v);

    if (!v)
        return 0;
    if (!json_is_number(v) || !(n >= 0) || n > MAX_COUNT || n != (double)(uint32_t)n)
        return schema_refuse(c, at, key, "expected an integer from 0 to 1000000");
    *ret = (uint32_t)n;
    return 1;
}

static int counts_read(const struct compiler *c, const json_t *schema, const char *min, const char *max,
                       const struct place *at, uint32_t *ret_min, uint32_t *ret_max)
{
    int r;

    *ret_min = 0;
    *ret_max = UINT32_MAX;
    r = count_read(c, schema, min, at, ret_min);
    if (r >= 0)
        r = count_read(c, schema, max, at, ret_max);
    if (r >= 0 && *ret_max < *ret_min)
        r = schema_refuse(c, at, max, "less than the least number");
    return MIN(r, 0);
}

/* The table of an expression, made once however often it is used. */
static int pattern_get(struct compiler *c, const struct pattern **ret, const char *regex, struct err *err)
{
    struct known_pattern *known;
    struct pattern *p;
    int r;

    for (const struct known_pattern *k = c->g->patterns; k; k = k->next)
        if (strcmp(k->regex, regex) == 0) {
            *ret = k->pattern;
            return 0;
        }
    r = pattern_new(&p, regex, &c->g->arena, c->work, err);
    if (r < 0)
        return r;
    known = arena_alloc(&c->g->arena, sizeof(*known));
    if (!known)
        return -ENOMEM;
    *known = (struct known_pattern){ arena_strdup(&c->g->arena, regex), p, c->g->patterns };
    if (!known->regex)
        return -ENOMEM;
    c->g->patterns = known;
    *ret = p;
    return 0;
}

/* Narrow *p by another expression. */
static int narrow(struct compiler *c, const struct pattern **p, const char *regex, const char *keyword,
                  const struct place *at)
{
    const struct pattern *more;
    struct pattern *both;
    struct err why = { "" };
    int r = pattern_get(c, &more, regex, &why);

    if (r == 0 && *p) {
        r = pattern_both(&both, *p, more, &c->g->arena, c->work, &why);
        more = both;
    }
    if (r == 0)
        *p = more;
    return r == -EINVAL ? schema_refuse(c, at, keyword, why.msg) : r;
}

static int64_t string_add(struct compiler *c, const json_t *schema, const struct place *at)
{
    const json_t *pattern = json_object_get(schema, "pattern"), *format = json_object_get(schema, "format");
    const struct pattern *p = NULL;
    const char *known = NULL;
    uint32_t min, max;
    char lengths[64];
    int r = counts_read(c, schema, "minLength", "maxLength", at, &min, &max);

    if (r < 0)
        return r;
    if ((pattern && !json_is_string(pattern)) || (format && !json_is_string(format)))
        return schema_refuse(c, at, json_is_string(pattern) || !pattern ? "format" : "pattern", "expected a string");
    if (format) {
        known = pattern_of_format(json_string_value(format));
        if (!known)
            return schema_refuse(c, at, "format", "this format is not supported");
        r = narrow(c, &p, known, "format", at);
    }
    if (r == 0 && pattern)
        r = narrow(c, &p, json_string_value(pattern), "pattern", at);
    if (r < 0)
        return r;
    if (!p)
        return grammar_node(c->g, (struct node){ .kind = NODE_STRING, .string = { min, max } });
    if (min || max != UINT32_MAX) {
        const char *any = MAX(min, max == UINT32_MAX ? 0 : max) <= MAX_WIDE ? "[^\\0]" : "[ -~]";
        if (max == UINT32_MAX)
            snprintf(lengths, sizeof(lengths), "^%s{%u,}$", any, min);
        else
            snprintf(lengths, sizeof(lengths), "^%s{%u,%u}$", any, min, max);
        r = narrow(c, &p, lengths, "maxLength", at);
    }
    return r < 0 ? r : grammar_node(c->g, (struct node){ .kind = NODE_PATTERN, .pattern = p });
}

/* ---- arrays and objects ---- */

static int64_t array_add(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth,
    unsigned nesting)
{
    const json_t *items = json_object_get(schema, "items");
    struct node n = { .kind = NODE_ARRAY };
    int64_t item;
    int r = counts_read(c, schema, "minItems", "maxItems", at, &n.array.min, &n.array.max);

    if (r < 0)
        return r;
    if (json_is_true(json_object_get(schema, "uniqueItems")))
        return schema_refuse(c, at, "uniqueItems", "not supported");
    item = items ? schema_add_inner(c, items, &(struct place){ at, "items", 0 }, depth + 1, nesting + 1)
                 : schema_add_any(c->g, false);
    if (item < 0)
        return item;
    n.array.item = (uint32_t)item;
    return grammar_node(c->g, n);
}

static bool is_required(const json_t *required, const char *name)
{
    const json_t *v;
    size_t i;

    json_array_foreach(required, i, v)
        if (strcmp(json_string_value(v), name) == 0)
            return true;
    return false;
}

static int required_check(const struct compiler *c, const json_t *required, const json_t *properties,
                          const struct place *at)
{
    const json_t *v;
    size_t i;

    if (required && !json_is_array(required))
        return schema_refuse(c, at, "required", "expected an array of names");
    if (json_array_size(required) > json_object_size(properties))
        return schema_refuse(c, at, "required", "names what properties does not have");
    json_array_foreach(required, i, v)
        if (!json_is_string(v) || !json_object_get(properties, json_string_value(v)))
            return schema_refuse(c, at, "required", "names what properties does not have");
    return 0;
}

/* A property's name as it stands in an object, `,"name":`. */
static int64_t key_add(struct grammar *g, const char *name)
{
    cleanup(json_decrefp) json_t *s = json_string(name);
    cleanup(freep) char *quoted = s ? json_dumps(s, JSON_ENCODE_ANY) : NULL, *text = NULL;

    if (!quoted || asprintf(&text, ",%s:", quoted) < 0) {
        text = NULL;
        return -ENOMEM;
    }
    return grammar_text(g, text, strlen(text));
}

/* An object of any keys. */
static int64_t map_add(struct compiler *c, const json_t *values, const struct place *at, unsigned depth,
    unsigned nesting)
{
    int64_t value;

    if (!values || json_is_true(values))
        return schema_add_any(c->g, true);
    value = schema_add_inner(c, values, &(struct place){ at, "additionalProperties", 0 }, depth + 1, nesting + 1);
    return value < 0 ? value : grammar_node(c->g, (struct node){ .kind = NODE_MAP, .map = { (uint32_t)value } });
}

static int64_t object_add(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth,
    unsigned nesting)
{
    json_t *properties = json_object_get(schema, "properties"), *value;
    const json_t *required = json_object_get(schema, "required"), *others = json_object_get(schema,
        "additionalProperties");
    struct node n = { .kind = NODE_OBJECT };
    const struct place inside = { at, "properties", 0 };
    const char *name;
    int64_t r;

    if (properties && !json_is_object(properties))
        return schema_refuse(c, at, "properties", "expected an object");
    if (others && !json_is_boolean(others) && !json_is_object(others))
        return schema_refuse(c, at, "additionalProperties", "expected true, false or a schema");
    r = required_check(c, required, properties, at);
    if (r == 0 && !json_object_size(properties) && !json_is_false(others) && (json_is_object(others) || !properties))
        return map_add(c, others, at, depth, nesting);
    if (r == 0)
        r = schema_count(c, at, &c->n_properties, json_object_size(properties), MAX_PROPERTIES, "properties");
    if (r < 0)
        return r;
    n.object.properties = arena_alloc(&c->g->arena, json_object_size(properties) * sizeof(*n.object.properties));
    if (!n.object.properties)
        return -ENOMEM;
    json_object_foreach(properties, name, value) {
        struct property *p = &n.object.properties[n.object.n++];

        r = schema_count(c, at, &c->n_bytes, strlen(name), MAX_STRING_BYTES, "bytes of names and values");
        if (r == 0)
            r = key_add(c->g, name);
        if (r < 0)
            return r;
        p->key = (uint32_t)r;
        r = schema_add_inner(c, value, &(struct place){ &inside, name, 0 }, depth + 1, nesting + 1);
        if (r < 0)
            return r;
        p->value = (uint32_t)r;
        p->required = is_required(required, name);
    }
    return grammar_node(c->g, n);
}

int64_t schema_add_any(struct grammar *g, bool object)
{
    cleanup(json_decrefp) json_t *empty = json_object();
    struct number *number = arena_alloc(&g->arena, sizeof(*number));
    uint32_t *kinds = arena_alloc(&g->arena, 5 * sizeof(*kinds));
    uint32_t first = (uint32_t)g->n_nodes;

    if (g->any_object)
        return (int64_t)(object ? g->any_object : g->any_object - 1);
    if (!empty || !number || !kinds || number_init(number, empty, false, NULL) < 0)
        return -ENOMEM;
    for (uint32_t i = 0; i < 5; i++)
        kinds[i] = first + 1 + i;
    if (grammar_node(g, (struct node){ .kind = NODE_ANY_OF, .any_of = { kinds, 5 } }) < 0 ||
        grammar_node(g, (struct node){ .kind = NODE_MAP, .map = { first } }) < 0 ||
        grammar_node(g, (struct node){ .kind = NODE_ARRAY, .array = { first, 0, UINT32_MAX } }) < 0 ||
        grammar_node(g, (struct node){ .kind = NODE_STRING, .string = { 0, UINT32_MAX } }) < 0 ||
        grammar_node(g, (struct node){ .kind = NODE_NUMBER, .number = number }) < 0 ||
        words_add(g, "false", "null", "true") < 0)
        return -ENOMEM;
    g->any_object = first + 1;
    return object ? first + 1 : first;
}

/* ---- types ---- */

int64_t schema_add_types(struct compiler *c, const json_t *schema, unsigned set, const struct place *at, unsigned depth,
                         unsigned nesting)
{
    struct node any = { .kind = NODE_ANY_OF };

    any.any_of.alternatives = arena_alloc(&c->g->arena, N_TYPES * sizeof(*any.any_of.alternatives));
    if (!any.any_of.alternatives)
        return -ENOMEM;
    if (set & NUMBER)
        set &= ~(unsigned)INTEGER;
    for (unsigned type = 1; type <= NIL; type <<= 1) {
        int64_t r = 0;

        if (!(set & type))
            continue;
        if ((type == OBJECT || type == ARRAY) && nesting >= MAX_NESTING)
            return schema_refuse(c, at, NULL, "more than 10 objects and arrays inside each other");
        switch (type) {
        case OBJECT: r = object_add(c, schema, at, depth, nesting); break;
        case ARRAY: r = array_add(c, schema, at, depth, nesting); break;
        case STRING: r = string_add(c, schema, at); break;
        case NUMBER:
        case INTEGER: r = number_add(c, schema, type == INTEGER, at); break;
        case BOOLEAN: r = words_add(c->g, "false", "true", NULL); break;
        case NIL: r = words_add(c->g, "null", NULL, NULL); break;
        }
        if (r < 0)
            return r;
        if (set == type)
            return r;
        any.any_of.alternatives[any.any_of.n++] = (uint32_t)r;
    }
    return grammar_node(c->g, any);
}
