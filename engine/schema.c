/* JSON Schema to the nodes of a grammar: the subset of draft 2020-12 that OpenAI's structured outputs accept, with
 * properties that may be left out, free-form objects and a few formats more.
 *
 * A keyword that is not known is refused by its name, since ignoring it could let through what it forbids; keywords
 * that only annotate are passed over, and so, as the standard says, are those of other types than the schema's own.
 *
 * A $ref is the place it points to, each compiled once, from a list and not by recursion; so a schema may refer to
 * itself. Sizes are OpenAI's limits, which bound the work too. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/schema.h"

#define MAX_SCHEMAS 20000
#define MAX_DEPTH 64               /* schemas in each other, anyOf included */
#define MAX_ALTERNATIVES 1000

/* ---- keywords ---- */

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
    { "readOnly", ANY }, { "writeOnly", ANY }, { "$schema", ANY }, { "$id", ANY }, { "$comment", ANY },
    { "$defs", ANY }, { "definitions", ANY },
};

static int keyword_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(keywords); i++)
        if (strcmp(keywords[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* ---- places, for errors ---- */

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

int schema_refuse(const struct compiler *c, const struct place *at, const char *keyword, const char *words)
{
    char path[300] = "";

    place_print(at, path, sizeof(path));
    for (char *s = path; *s; s++)
        if ((uint8_t)*s < 0x20 || (uint8_t)*s > 0x7e)
            *s = '?';            /* a name may be cut within a character */
    return err_set(c->err, -EINVAL, "%s%s%s: %s", path, keyword ? "/" : "", keyword ? keyword : "", words);
}

int schema_count(struct compiler *c, const struct place *at, size_t *n, size_t more, size_t max, const char *what)
{
    char words[80];

    *n += more;
    if (*n <= max)
        return 0;
    snprintf(words, sizeof(words), "more than %zu %s in all", max, what);
    return schema_refuse(c, at, NULL, words);
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
            return schema_refuse(c, at, "type", "expected object, array, string, number, integer, boolean or null");
        set |= types[k].type;
    }
    if (type && !set)
        return schema_refuse(c, at, "type", "expected at least one");
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
            return schema_refuse(c, at, name, "not supported");
        if (only && strcmp(name, only) != 0 && keywords[k].type != ANY && !typed) {
            char words[64];
            snprintf(words, sizeof(words), "not supported beside %s", only);
            return schema_refuse(c, at, name, words);
        }
    }
    return 0;
}

static int64_t any_of_add(struct compiler *c, const json_t *list, const char *keyword, const struct place *at,
    unsigned depth,
                          unsigned nesting)
{
    const struct place inside = { at, keyword, 0 };
    struct node n = { .kind = NODE_ANY_OF };
    const json_t *v;
    size_t i;

    if (!json_is_array(list) || !json_array_size(list) || json_array_size(list) > MAX_ALTERNATIVES)
        return schema_refuse(c, at, keyword, "expected an array of 1 to 1000 schemas");
    if (*keyword == 'a' && keyword[1] == 'l' && json_array_size(list) > 1)
        return schema_refuse(c, at, keyword, "not supported with more than one schema");
    n.any_of.alternatives = arena_alloc(&c->g->arena, json_array_size(list) * sizeof(*n.any_of.alternatives));
    if (!n.any_of.alternatives)
        return -ENOMEM;
    json_array_foreach(list, i, v) {
        int64_t r = schema_add_inner(c, v, &(struct place){ &inside, NULL, i }, depth + 1, nesting);
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
        return schema_refuse(c, at, "$ref", "expected # or a pointer such as #/$defs/name to a schema that is there");
    for (size_t i = 0; i < c->n_targets; i++)
        if (c->targets[i].schema == schema)
            return c->targets[i].node;
    if (c->n_targets == MAX_TARGETS)
        return schema_refuse(c, at, "$ref", "more than 500 definitions");
    n.any_of.alternatives = arena_alloc(&c->g->arena, sizeof(*n.any_of.alternatives));
    r = n.any_of.alternatives ? grammar_node(c->g, n) : -ENOMEM;
    if (r >= 0)
        c->targets[c->n_targets++] = (struct target){ schema, (uint32_t)r, json_string_value(ref) };
    return r;
}

int64_t schema_add_inner(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth,
    unsigned nesting)
{
    const json_t *list;
    unsigned set = 0;
    int r;

    if (json_is_true(schema))
        return schema_add_any(c->g, false);
    if (json_is_false(schema))
        return schema_refuse(c, at, NULL, "false allows nothing");
    if (!json_is_object(schema))
        return schema_refuse(c, at, NULL, "expected a schema, which is an object");
    if (depth > MAX_DEPTH)
        return schema_refuse(c, at, NULL, "too many schemas inside each other");
    r = schema_count(c, at, &c->n_schemas, 1, MAX_SCHEMAS, "schemas");
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
        return schema_add_values(c, schema, set, at);
    return set == ANY ? schema_add_any(c->g, false) : schema_add_types(c, schema, set, at, depth, nesting);
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
    node = schema_add_inner(c, schema, &at, 0, 0);
    /* Targets found meanwhile join the list. */
    for (size_t i = 0; node >= 0 && i < c->n_targets; i++) {
        const struct place there = { &at, c->targets[i].ref, 0 };
        int64_t r = schema_add_inner(c, c->targets[i].schema, &there, 0, 0);
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
