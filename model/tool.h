/* tern-model: looks at model files, makes them and measures them. One file a verb; tern-model.c has the table.
 * Answers go to stdout, progress and faults to stderr. Exit status: 0 done, 1 it could not be done, 2 wrong usage. */
#pragma once

#include "engine/internal.h"

enum { TOOL_OK = 0, TOOL_FAILED = 1, TOOL_USAGE = 2 };

struct verb {
    const char *name, *arguments, *summary, *help;
    int (*run)(int argc, char **argv);                  /* argv[0] is the verb's name */
};
extern const struct verb inspect_verb, convert_verb, synth_verb, perplexity_verb;

int usage_error(const struct verb *v, const char *fmt, ...) PRINTF_LIKE(2, 3);  /* returns TOOL_USAGE */
/* Print why; returns TOOL_FAILED. r is what was returned, err may have no words. */
int failure(int r, const struct err *err);
/* A whole number from text; 0 or -EINVAL. */
int parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret);

/* A line on stderr that says how far it is, from the second second on and on a terminal only. */
struct progress { const char *what; uint64_t started_usec, shown_usec; bool shown; };
void progress_begin(struct progress *p, const char *what);
void progress_show(struct progress *p, double share, const char *more);  /* more: "" or what else to say */
void progress_end(struct progress *p);                                   /* takes the line away */

/* The projections of a layer: blk.N.NAME.weight is ternary. */
#define N_PROJECTIONS 7
extern const char *const projections[N_PROJECTIONS];
bool is_projection(struct gguf_string tensor);
