/* The configuration: one constant, reference-counted value made from INI files and --set overrides. The table of options in
 * options.c is the single source of names, types, defaults, ranges, units and the manual's sentences. A reload builds a whole
 * new value, checks it, and swaps; what runs keeps the one it began with.
 *
 * Files: the one given (default /etc/tern/tern.conf), then every *.conf in the directory <file>.d (tern.conf.d) in name order,
 * and last auth.keys_file, which may be missing and holds [key NAME] sections alone: `ternctl key` writes it.
 * A missing default file means defaults; a missing file that was named is an error. Later settings win. */
#pragma once

#include <stdio.h>
#include "router/router.h"

struct api_key {
    char name[64];
    uint8_t sha256[32];            /* of the key itself */
    bool has_label; enum label label;
    int batch;                     /* gives way to others */
    unsigned apis;                 /* set of enum api; 0: all */
    struct request_scope scope;
    unsigned rate;                 /* requests a minute; 0: any number */
    uint64_t tokens_per_day;       /* in and out, UTC days; 0: any number */
    int64_t microusd_per_day;      /* 0: any amount */
};
enum api { API_OPENAI, API_ANTHROPIC, API_OLLAMA, API_TERN };

#define CONFIG_MAX_KEYS 256
#define CONFIG_MAX_HOSTS 16

struct config {
    unsigned refs;
    struct {
        char tcp[128];             /* "127.0.0.1:8420", "" none */
        char tls[128];             /* the same, with TLS, of any address */
        char tls_cert[512], tls_key[512], tls_client_ca[512];
        char unix_path[108];       /* "" none */
        char hosts[CONFIG_MAX_HOSTS][128]; size_t n_hosts;       /* allowed Host names besides loopback's */
        char origins[CONFIG_MAX_HOSTS][128]; size_t n_origins;   /* allowed Origins; default none */
        unsigned max_connections;
        size_t max_body_bytes, max_header_bytes;
        char unix_uids[CONFIG_MAX_HOSTS][128]; size_t n_unix_uids;   /* numbers, or "*"; none: our own and root's */
        unsigned max_connections_peer;
        unsigned header_timeout_msec, body_timeout_msec, write_timeout_msec;
    } listen;
    struct { char path[512]; bool answer_unrecorded; unsigned max_requests; } store;
    struct {
        char model[512];           /* "" the built-in one */
        char cache[512];           /* "" by the environment, "none" */
        unsigned threads, context, sessions, queue, queue_client, max_tokens;
        double temperature, top_p;
        char template[1024];       /* "auto", a name or pieces, engine_template_check() */
        unsigned i2s_layout;       /* 0 auto, then a, b, c */
        unsigned activation;       /* enum ffn_act */
        bool weight_only;
        unsigned kv;               /* enum kv_type */
        size_t kv_bytes, prefix_bytes;
        bool draft;
    } engine;
    struct { bool required; char keys_file[512]; struct api_key keys[CONFIG_MAX_KEYS]; size_t n_keys; } auth;
    struct { int level; } log;
    struct ssl_ctx_st *tls;        /* tls_load()'s, in the front alone; or NULL */
    struct router_config *router;  /* policy, clouds, limits: what a request keeps; one reference held */
};

/* Load and check everything. Errors say FILE:LINE, what was found (never a secret's value) and what was expected. `sets` are
 * "section.key=value" ("cloud.NAME.key=value" for named sections). 0, -ENOMEM, -EINVAL/-ENOENT with *err. */
int config_load(struct config **ret, const char *path, bool path_given, char *const *sets, size_t n_sets, struct err *err);
struct config *config_ref(struct config *c);
void config_unref(struct config *c);
/* First option that differs but cannot change while running ("listen.tcp"), or NULL: a reload then warns that it needs a restart. */
const char *config_needs_restart(const struct config *a, const struct config *b);

/* The options table, for --help, the manual and its test: prints every option as a commented INI file, or as mdoc. */
void options_print_ini(FILE *out);
void options_print_mdoc(FILE *out);
