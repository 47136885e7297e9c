/* JSON Schema to the nodes of a grammar: the subset of draft 2020-12 that OpenAI's structured outputs accept, with
 * properties that may be left out, free-form objects and a few formats more.
 *
 * A keyword that is not known is refused by its name, since ignoring it could let through what it forbids; keywords that
 * only annotate are passed over, and so, as the standard says, are those of other types than the schema's own. What is
 * narrowed: properties come in the schema's order and none that is not named, nothing is written twice as long as it
 * must be (no blanks, no exponents), and a string with a pattern stays within what all dialects agree on.
 *
 * A $ref is the place it points to, each compiled once, from a list and not by recursion; so a schema may refer to
 * itself. Sizes are OpenAI's limits, which bound the work too. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/grammar.h"

#define MAX_PROPERTIES 5000
#define MAX_SCHEMAS 20000
#define MAX_NESTING 10             /* objects and arrays */
#define MAX_DEPTH 64               /* schemas in each other, anyOf included */
#define MAX_VALUES 1000            /* of all enums */
#define MAX_LARGE_VALUES 250       /* an enum of more strings is limited in bytes */
#define MAX_LARGE_BYTES 15000
#define MAX_STRING_BYTES 120000    /* of all names and values */
#define MAX_TARGETS 500            /* that a $ref points to */
#define MAX_ALTERNATIVES 1000
#define MAX_COUNT 1000000          /* of items and characters */
#define MAX_WIDE 128               /* longest string whose pattern is counted in characters and not in bytes of ASCII */

/* ---- keywords ---- */

enum { OBJECT = 1, ARRAY = 2, STRING = 4, NUMBER = 8, INTEGER = 16, BOOLEAN = 32, NIL = 64, ANY = 127 };

static const struct { const char *name; unsigned type; } types[] = {
    { "object", OBJECT }, { "array", ARRAY }, { "string", STRING }, { "number", NUMBER }, { "integer", INTEGER },
    { "boolean", BOOLEAN }, { "null", NIL },
};

/* Of which type they speak: ANY is an annotation, 0 stands on its own. */
static const struct { const char *name; unsigned type; } keywords[] = {
    { "type", 0 }, { "enum", 0 }, { "const", 0 }, { "anyOf", 0 }, { "allOf", 0 }, { "$ref", 0 },
    { "properties", OBJECT }, { "required", OBJECT }, { "additionalProperties", OBJECT },
    { "items", ARRAY }, { "minItems", ARRAY }, { "maxItems", ARRAY }, { "uniqueItems", ARRAY },
    { "pattern", STRING }, { "format", STRING }, { "minLength", STRING }, { "maxLength", STRING },
    { "minimum", NUMBER | INTEGER }, { "maximum", NUMBER | INTEGER }, { "exclusiveMinimum", NUMBER | INTEGER },
    { "exclusiveMaximum", NUMBER | INTEGER }, { "multipleOf", NUMBER | INTEGER },
    { "title", ANY }, { "description", ANY }, { "default", ANY }, { "examples", ANY }, { "deprecated", ANY },
    { "readOnly", ANY }, { "writeOnly", ANY }, { "$schema", ANY }, { "$id", ANY }, { "$comment", ANY }, { "$defs", ANY },
    { "definitions", ANY },
};

static int keyword_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(keywords); i++)
        if (strcmp(keywords[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* ---- places, for errors ---- */

struct place { const struct place *up; const char *key; size_t index; };      /* key NULL: an index */

struct target { const json_t *schema; uint32_t node; const char *ref; };

struct compiler {
    struct grammar *g;
    const json_t *root;
    const char *path;
    size_t *work;
    struct err *err;
    struct target targets[MAX_TARGETS];
    size_t n_targets, n_done;
    size_t n_schemas, n_properties, n_values, n_bytes;
};

static void place_print(const struct place *p, char *out, size_t size)
{
    size_t len;

    if (p->up)
        place_print(p->up, out, size);
    len = strlen(out);
    if (p->key)
        snprintf(out + len, size - len, "%s%.60s", p->up ? "/" : "", p->key);
    else
        snprintf(out + len, size - len, "/%zu", p->index);
}

/* -EINVAL, with the path and the words in *err. */
static int refuse(const struct compiler *c, const struct place *at, const char *keyword, const char *words)
{
    char path[300] = "";

    place_print(at, path, sizeof(path));
    for (char *s = path; *s; s++)
        if ((uint8_t)*s < 0x20 || *s == 0x7f)
            *s = '?';
    return err_set(c->err, -EINVAL, "%s%s%s: %s", path, keyword ? "/" : "", keyword ? keyword : "", words);
}

static int count(struct compiler *c, const struct place *at, size_t *n, size_t more, size_t max, const char *what)
{
    char words[80];

    *n += more;
    if (*n <= max)
        return 0;
    snprintf(words, sizeof(words), "more than %zu %s in all", max, what);
    return refuse(c, at, NULL, words);
}

static int64_t compile(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth, unsigned nesting);

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
    int64_t r = texts ? count(c, at, &c->n_values, n, MAX_VALUES, "values of enums") : -ENOMEM;

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
        r = count(c, at, &c->n_bytes, bytes, MAX_STRING_BYTES, "bytes of names and values");
    if (r == 0 && n > MAX_LARGE_VALUES && bytes > MAX_LARGE_BYTES)
        r = refuse(c, at, "enum", "more than 15000 bytes in more than 250 values");
    if (r == 0 && !kept)
        r = refuse(c, at, NULL, "no value is of the type");
    if (r == 0)
        return choice_add(c->g, texts, kept);
    for (size_t i = 0; i < kept; i++)
        free(texts[i]);
    return r;
}

static int64_t enum_add(struct compiler *c, const json_t *schema, unsigned allowed, const struct place *at)
{
    json_t *value = json_object_get(schema, "const"), *list = json_object_get(schema, "enum"), *v;
    cleanup(freep) json_t **values = NULL;
    size_t i;

    if (value)
        return values_add(c, &value, 1, allowed, at);
    if (!json_is_array(list) || !json_array_size(list))
        return refuse(c, at, "enum", "expected an array of at least one value");
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
        return r == -EINVAL ? refuse(c, at, NULL, why.msg) : r;
    return grammar_node(c->g, (struct node){ .kind = NODE_NUMBER, .number = n });
}

/* A count of items or characters: 1 there, 0 not. */
static int count_read(const struct compiler *c, const json_t *schema, const char *key, const struct place *at, uint32_t *ret)
{
    const json_t *v = json_object_get(schema, key);
    double n = json_number_value(v);

    if (!v)
        return 0;
    if (!json_is_number(v) || !(n >= 0) || n > MAX_COUNT || n != (double)(uint32_t)n)
        return refuse(c, at, key, "expected an integer from 0 to 1000000");
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
        r = refuse(c, at, max, "less than the least number");
    return MIN(r, 0);
}

/* Narrow *p by another expression. */
static int narrow(struct compiler *c, const struct pattern **p, const char *regex, const char *keyword,
                  const struct place *at)
{
    struct pattern *more, *both;
    struct err why = { "" };
    int r = pattern_new(&more, regex, &c->g->arena, c->work, &why);

    if (r == 0 && *p) {
        r = pattern_both(&both, *p, more, &c->g->arena, c->work, &why);
        more = both;
    }
    if (r == 0)
        *p = more;
    return r == -EINVAL ? refuse(c, at, keyword, why.msg) : r;
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
        return refuse(c, at, json_is_string(pattern) || !pattern ? "format" : "pattern", "expected a string");
    if (format) {
        known = pattern_of_format(json_string_value(format));
        if (!known)
            return refuse(c, at, "format", "this format is not supported");
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

static int64_t array_add(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth, unsigned nesting)
{
    const json_t *items = json_object_get(schema, "items");
    struct node n = { .kind = NODE_ARRAY };
    int64_t item;
    int r = counts_read(c, schema, "minItems", "maxItems", at, &n.array.min, &n.array.max);

    if (r < 0)
        return r;
    if (json_is_true(json_object_get(schema, "uniqueItems")))
        return refuse(c, at, "uniqueItems", "not supported");
    item = items ? compile(c, items, &(struct place){ at, "items", 0 }, depth + 1, nesting + 1)
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
        return refuse(c, at, "required", "expected an array of names");
    if (json_array_size(required) > json_object_size(properties))
        return refuse(c, at, "required", "names what properties does not have");
    json_array_foreach(required, i, v)
        if (!json_is_string(v) || !json_object_get(properties, json_string_value(v)))
            return refuse(c, at, "required", "names what properties does not have");
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
static int64_t map_add(struct compiler *c, const json_t *values, const struct place *at, unsigned depth, unsigned nesting)
{
    int64_t value;

    if (!values || json_is_true(values))
        return schema_add_any(c->g, true);
    value = compile(c, values, &(struct place){ at, "additionalProperties", 0 }, depth + 1, nesting + 1);
    return value < 0 ? value : grammar_node(c->g, (struct node){ .kind = NODE_MAP, .map = { (uint32_t)value } });
}

static int64_t object_add(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth, unsigned nesting)
{
    json_t *properties = json_object_get(schema, "properties"), *value;
    const json_t *required = json_object_get(schema, "required"), *others = json_object_get(schema, "additionalProperties");
    struct node n = { .kind = NODE_OBJECT };
    const struct place inside = { at, "properties", 0 };
    const char *name;
    int64_t r;

    if (properties && !json_is_object(properties))
        return refuse(c, at, "properties", "expected an object");
    if (others && !json_is_boolean(others) && !json_is_object(others))
        return refuse(c, at, "additionalProperties", "expected true, false or a schema");
    r = required_check(c, required, properties, at);
    if (r == 0 && !json_object_size(properties) && !json_is_false(others) && (json_is_object(others) || !properties))
        return map_add(c, others, at, depth, nesting);
    if (r == 0)
        r = count(c, at, &c->n_properties, json_object_size(properties), MAX_PROPERTIES, "properties");
    if (r < 0)
        return r;
    n.object.properties = arena_alloc(&c->g->arena, json_object_size(properties) * sizeof(*n.object.properties));
    if (!n.object.properties)
        return -ENOMEM;
    json_object_foreach(properties, name, value) {
        struct property *p = &n.object.properties[n.object.n++];

        r = count(c, at, &c->n_bytes, strlen(name), MAX_STRING_BYTES, "bytes of names and values");
        if (r == 0)
            r = key_add(c->g, name);
        if (r < 0)
            return r;
        p->key = (uint32_t)r;
        r = compile(c, value, &(struct place){ &inside, name, 0 }, depth + 1, nesting + 1);
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

/* ---- schemas ---- */

/* The types a schema speaks of: its own, or those its keywords belong to. */
static int types_read(const struct compiler *c, const json_t *schema, const struct place *at, unsigned *ret)
{
    const json_t *type = json_object_get(schema, "type"), *one = type;
    unsigned set = 0;
    const char *name;
    json_t *v;

    for (size_t i = 0; type && i < (json_is_array(type) ? json_array_size(type) : 1); i++) {
        size_t k = 0;

        if (json_is_array(type))
            one = json_array_get(type, i);
        while (k < ARRAY_SIZE(types) && (!json_is_string(one) || strcmp(types[k].name, json_string_value(one)) != 0))
            k++;
        if (k == ARRAY_SIZE(types))
            return refuse(c, at, "type", "expected object, array, string, number, integer, boolean or null");
        set |= types[k].type;
    }
    if (type && !set)
        return refuse(c, at, "type", "expected at least one");
    if (!type)
        json_object_foreach((json_t *)schema, name, v)
            if (keywords[keyword_find(name)].type != ANY)
                set |= keywords[keyword_find(name)].type;
    *ret = set ? set : ANY;
    return 0;
}

static int keywords_check(const struct compiler *c, const json_t *schema, const struct place *at)
{
    static const char *const alone[] = { "$ref", "anyOf", "allOf", "enum", "const" };
    const char *name, *only = NULL;
    json_t *v;

    for (size_t i = 0; i < ARRAY_SIZE(alone) && !only; i++)
        if (json_object_get(schema, alone[i]))
            only = alone[i];
    json_object_foreach((json_t *)schema, name, v) {
        int k = keyword_find(name);
        bool typed = only && (*only == 'e' || *only == 'c') && strcmp(name, "type") == 0;

        if (k < 0)
            return refuse(c, at, name, "not supported");
        if (only && strcmp(name, only) != 0 && keywords[k].type != ANY && !typed) {
            char words[64];
            snprintf(words, sizeof(words), "not supported beside %s", only);
            return refuse(c, at, name, words);
        }
    }
    return 0;
}

static int64_t any_of_add(struct compiler *c, const json_t *list, const char *keyword, const struct place *at, unsigned depth,
                          unsigned nesting)
{
    const struct place inside = { at, keyword, 0 };
    struct node n = { .kind = NODE_ANY_OF };
    const json_t *v;
    size_t i;

    if (!json_is_array(list) || !json_array_size(list) || json_array_size(list) > MAX_ALTERNATIVES)
        return refuse(c, at, keyword, "expected an array of 1 to 1000 schemas");
    if (*keyword == 'a' && keyword[1] == 'l' && json_array_size(list) > 1)
        return refuse(c, at, keyword, "not supported with more than one schema");
    n.any_of.alternatives = arena_alloc(&c->g->arena, json_array_size(list) * sizeof(*n.any_of.alternatives));
    if (!n.any_of.alternatives)
        return -ENOMEM;
    json_array_foreach(list, i, v) {
        int64_t r = compile(c, v, &(struct place){ &inside, NULL, i }, depth + 1, nesting);
        if (r < 0)
            return r;
        n.any_of.alternatives[n.any_of.n++] = (uint32_t)r;
    }
    return grammar_node(c->g, n);
}

/* What a pointer such as #/$defs/a~1b points to, or NULL. */
static const json_t *pointer_find(const json_t *root, const char *pointer)
{
    const json_t *at = root;
    char key[256];

    if (*pointer++ != '#')
        return NULL;
    while (*pointer == '/' && at) {
        size_t n = 0;

        for (pointer++; *pointer && *pointer != '/' && n < sizeof(key) - 1; pointer++) {
            if (*pointer == '~' && (pointer[1] == '0' || pointer[1] == '1'))
                key[n++] = *++pointer == '0' ? '~' : '/';
            else
                key[n++] = *pointer;
        }
        key[n] = '\0';
        at = json_is_array(at) ? json_array_get(at, strtoul(key, NULL, 10)) : json_object_get(at, key);
    }
    return *pointer ? NULL : at;
}

/* The node of what a $ref points to, which is compiled later. */
static int64_t ref_add(struct compiler *c, const json_t *ref, const struct place *at)
{
    const json_t *schema = json_is_string(ref) ? pointer_find(c->root, json_string_value(ref)) : NULL;
    struct node n = { .kind = NODE_ANY_OF, .any_of = { NULL, 1 } };
    int64_t r;

    if (!schema)
        return refuse(c, at, "$ref", "expected # or a pointer such as #/$defs/name to a schema that is there");
    for (size_t i = 0; i < c->n_targets; i++)
        if (c->targets[i].schema == schema)
            return c->targets[i].node;
    if (c->n_targets == MAX_TARGETS)
        return refuse(c, at, "$ref", "more than 500 definitions");
    n.any_of.alternatives = arena_alloc(&c->g->arena, sizeof(*n.any_of.alternatives));
    r = n.any_of.alternatives ? grammar_node(c->g, n) : -ENOMEM;
    if (r >= 0)
        c->targets[c->n_targets++] = (struct target){ schema, (uint32_t)r, json_string_value(ref) };
    return r;
}

/* A schema that is told by its types. */
static int64_t types_add(struct compiler *c, const json_t *schema, unsigned set, const struct place *at, unsigned depth,
                         unsigned nesting)
{
    struct node any = { .kind = NODE_ANY_OF };

    any.any_of.alternatives = arena_alloc(&c->g->arena, ARRAY_SIZE(types) * sizeof(*any.any_of.alternatives));
    if (!any.any_of.alternatives)
        return -ENOMEM;
    if (set & NUMBER)
        set &= ~(unsigned)INTEGER;
    for (unsigned type = 1; type <= NIL; type <<= 1) {
        int64_t r = 0;

        if (!(set & type))
            continue;
        if ((type == OBJECT || type == ARRAY) && nesting >= MAX_NESTING)
            return refuse(c, at, NULL, "more than 10 objects and arrays inside each other");
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

static int64_t compile(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth, unsigned nesting)
{
    const json_t *list;
    unsigned set = 0;
    int r;

    if (json_is_true(schema))
        return schema_add_any(c->g, false);
    if (json_is_false(schema))
        return refuse(c, at, NULL, "false allows nothing");
    if (!json_is_object(schema))
        return refuse(c, at, NULL, "expected a schema, which is an object");
    if (depth > MAX_DEPTH)
        return refuse(c, at, NULL, "too many schemas inside each other");
    r = count(c, at, &c->n_schemas, 1, MAX_SCHEMAS, "schemas");
    if (r == 0)
        r = keywords_check(c, schema, at);
    if (r == 0)
        r = types_read(c, schema, at, &set);
    if (r < 0)
        return r;
    if (json_object_get(schema, "$ref"))
        return ref_add(c, json_object_get(schema, "$ref"), at);
    if ((list = json_object_get(schema, "anyOf")))
        return any_of_add(c, list, "anyOf", at, depth, nesting);
    if ((list = json_object_get(schema, "allOf")))
        return any_of_add(c, list, "allOf", at, depth, nesting);
    if (json_object_get(schema, "enum") || json_object_get(schema, "const"))
        return enum_add(c, schema, set, at);
    return set == ANY ? schema_add_any(c->g, false) : types_add(c, schema, set, at, depth, nesting);
}

int64_t schema_add(struct grammar *g, const json_t *schema, const char *path, size_t *work, struct err *err)
{
    cleanup(freep) struct compiler *c = calloc(1, sizeof(*c));
    struct place at = { NULL, path, 0 };
    int64_t node;

    if (!c)
        return -ENOMEM;
    c->g = g;
    c->root = schema;
    c->work = work;
    c->err = err;
    node = compile(c, schema, &at, 0, 0);
    /* Targets found meanwhile join the list. */
    for (size_t i = 0; node >= 0 && i < c->n_targets; i++) {
        const struct place there = { &at, c->targets[i].ref, 0 };
        int64_t r = compile(c, c->targets[i].schema, &there, 0, 0);
        if (r < 0)
            return r;
        g->nodes[c->targets[i].node].any_of.alternatives[0] = (uint32_t)r;
    }
    return node;
}

int engine_schema_check(const json_t *schema, const char *path, struct err *err)
{
    cleanup(grammar_freep) struct grammar *g = NULL;
    size_t work = GRAMMAR_WORK;
    struct err why = { "" };
    int64_t root;
    int r = grammar_new(&g);

    if (r < 0)
        return r;
    root = schema_add(g, schema, path, &work, err);
    if (root < 0)
        return (int)root;
    r = grammar_finish(g, (size_t)root, NULL, &why);
    return r == -EINVAL ? err_set(err, r, "%s: %s", path, why.msg) : r;
}
