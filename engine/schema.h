/* What schema.c and schema_types.c share: one schema being compiled. */
#pragma once

#include "engine/grammar.h"

#define MAX_TARGETS 500            /* that a $ref points to */

/* JSON Schema's types, as a set. */
enum { OBJECT = 1, ARRAY = 2, STRING = 4, NUMBER = 8, INTEGER = 16, BOOLEAN = 32, NIL = 64, ANY = 127 };

/* Where in the schema, for errors; key NULL: an index. */
struct place { const struct place *up; const char *key; size_t index; };

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

/* ---- schema.c ---- */
/* -EINVAL, with the path and the words in *err. keyword NULL: the schema itself. */
int schema_refuse(const struct compiler *c, const struct place *at, const char *keyword, const char *words);
/* Add to a count that has a limit. 0, or as schema_refuse(). */
int schema_count(struct compiler *c, const struct place *at, size_t *n, size_t more, size_t max, const char *what);
/* The node of a schema within `depth` schemas and `nesting` objects and arrays. */
int64_t schema_add_inner(struct compiler *c, const json_t *schema, const struct place *at, unsigned depth,
    unsigned nesting);

/* ---- schema_types.c ---- */
/* The node of a schema that is told by its types, or by values of them. */
int64_t schema_add_types(struct compiler *c, const json_t *schema, unsigned set, const struct place *at, unsigned depth,
                         unsigned nesting);
int64_t schema_add_values(struct compiler *c, const json_t *schema, unsigned set, const struct place *at);
