/* For tests of answers that are held to a JSON Schema. */
#pragma once

#include "engine/grammar.h"

/* As engine_schema_check(), which says why not, but the grammar is kept. */
int schema_compile(struct grammar **ret, const json_t *schema, const struct lexicon *prices, struct err *err);
/* Byte by byte: 1 it passes, 0 it does not, -1 it is the beginning of what would. */
int schema_reads(const struct grammar *g, const char *s, size_t len);
/* A schema for every seed: of any kind that is understood, nested, recursive, with awkward names and values. */
json_t *schema_make(uint64_t seed);
/* Is v valid by `schema`, which is inside `root`? */
bool schema_holds(const json_t *root, const json_t *schema, const json_t *v);
