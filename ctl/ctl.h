/* ternctl: what an operator says to a running ternd, over its public HTTP interface only. One file a verb; ternctl.c has the
 * table. Answers for people go to stdout, what is about the answer (route, reason) to stderr; --json prints the daemon's own
 * JSON. Exit status: 0 done, 1 the daemon said no, 2 wrong usage, 3 the daemon could not be reached. */
#pragma once

#include <stdbool.h>
#include "base/buf.h"
#include "base/json.h"

enum { CTL_OK = 0, CTL_REFUSED = 1, CTL_USAGE = 2, CTL_UNREACHABLE = 3 };

struct ctl {
    const char *url;        /* base, http://127.0.0.1:8420 */
    const char *socket;     /* unix socket instead of TCP, or NULL */
    const char *key;        /* API key or NULL */
    bool json;
    bool color;             /* stdout is a terminal and NO_COLOR is not set */
};

struct verb {
    const char *name, *arguments, *summary, *help;
    int (*run)(struct ctl *c, int argc, char **argv);   /* argv[0] is the verb's name */
};
extern const struct verb ask_verb, chat_verb, status_verb, log_verb, why_verb, stats_verb, key_verb;

/* ---- client.c ---- */
/* What the headers of an answer told about routing; "" where absent. */
struct client_route { char id[64], route[16], reason[64], model[128], confidence[32], cost[32]; bool degraded; };

/* GET path and parse the JSON. CTL_OK with *ret owned by the caller; else the exit status, with the reason printed to stderr. */
int client_get(struct ctl *c, const char *path, json_t **ret);
/* POST a chat completion with "stream": true. on_text gets each piece of the answer as it comes. The same results; a failure
 * after the first piece prints the daemon's error. *finish (size 32) gets the finish reason. */
int client_chat(struct ctl *c, const json_t *body, const char *label, const char *mode, struct client_route *route, char *finish,
                void (*on_text)(void *arg, const char *text, size_t len), void *arg);
/* Append `name=value`, percent-encoded, to a path being built; value NULL: nothing. 0 or -ENOMEM. */
int client_add_parameter(struct buf *path, const char *name, const char *value);

/* ---- print.c ---- */
/* Rows of a table with columns as wide as their widest cell; numbers right-aligned. Cells are owned by `rows`, a JSON array of
 * objects; `columns` names members, ends with NULL. */
void print_table(const struct ctl *c, const json_t *rows, const char *const *columns);
void print_json(const json_t *j);
/* "local, confident · tern-nano · P(right) 0.98": one line about an answer, dimmed on a terminal, to stderr. */
void print_route(const struct ctl *c, const struct client_route *r);
int usage_error(const struct verb *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));   /* returns CTL_USAGE */
