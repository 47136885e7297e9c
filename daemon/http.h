/* What the files of the HTTP front share: the head of a request, who asks, one exchange (a request and its answer),
 * and the shape of an API dialect. http.c holds connections, exchange.c one exchange, api.c and metrics.c tern's own
 * paths; a dialect is one more file with a struct dialect and its row in http.c. Everything belongs to the loop's
 * thread. */
#pragma once

#include <event2/http.h>
#include "base/arena.h"
#include "daemon/daemon.h"

/* ---- head.c: what may stand in front of a body, strictly ----
 * evhttp is lenient; nothing reaches it that has not passed here. Faults fill *e: status, code, message, all static. */
#define HEAD_MAX_FIELDS 100

struct head {                      /* strings lie in the text that was parsed; NULL: not sent */
    const char *method, *target, *query;   /* target: path alone, beginning with '/'; query: after '?', or NULL */
    bool http10, chunked, has_length;
    uint64_t length;               /* of the body */
    const char *host, *origin, *authorization, *api_key, *content_type, *expect, *transfer_encoding, *content_length;
    const char *preflight;         /* Access-Control-Request-Method */
    const char *label, *mode, *priority, *deadline_ms;
};

/* Look at the bytes from *from on, which it moves. Length of the whole head, 0: more bytes needed, -EPROTO with *e: it
 * holds a byte that no head may hold, or a line that does not end in CRLF. */
ssize_t head_scan(const uint8_t *bytes, size_t len, size_t *from, struct request_error *e);
/* Cut `text` (a whole head, writable) into *ret. 0, or -EPROTO with *e. */
int head_parse(struct head *ret, char *text, size_t len, struct request_error *e);

/* Follows a body's bytes past, to know where it ends and that its framing is sound. */
struct body {
    enum {
        BODY_DONE, BODY_PLAIN,
        BODY_SIZE, BODY_SIZE_LF, BODY_DATA, BODY_DATA_CR, BODY_DATA_LF, BODY_END_CR, BODY_END_LF,
    } state;
    uint64_t left, total, max;
    unsigned digits;
};
void body_init(struct body *b, const struct head *h, uint64_t max);
/* 0 with *ret_used < len only when the body ended there; -EPROTO with *e: 400, or 413 when it is longer than max. */
int body_scan(struct body *b, const uint8_t *bytes, size_t len, size_t *ret_used, struct request_error *e);

/* True when a Host header's value names us: loopback's names with any port, or one of the configured names. */
bool host_allowed(const char *host, const struct config *c);

/* ---- auth.c: who asks -------------------------------------------------------------------------------------------- */
/* Fills *e and returns -EACCES when the request may not pass; else 0 with *ret the key, or NULL when it carried none
 * that counts. Takes the same time whichever key it is. */
int auth_check(const struct api_key **ret, const struct config *c, const struct head *h, struct request_error *e);
/* Fills *e and returns -EACCES when the key may not use this API (a set of enum api, one bit; 0: nobody's own). */
int auth_api(const struct api_key *key, unsigned api, struct request_error *e);
/* "127.0.0.1", "unix:uid=1000". */
#define PEER_BYTES 64
void auth_peer(char out[PEER_BYTES], int fd);
/* True when fd is no unix socket, or when listen.unix_uids lets its user in. */
bool auth_uid(int fd, const struct config *c);

/* ---- quota.c: what each key used: of its rate, and of its budgets today ------------------------------------------- */
/* Take one request from the key's rate. 0, or -EACCES with *e, 429 and when to come again. What the key used before this
 * process began is asked of the store once; until it answers, it counts as nothing. */
int quota_take(const struct api_key *key, struct store *s, uint64_t now_usec, uint64_t wall_usec,
               struct request_error *e);
void quota_spend(const char *key, uint64_t wall_usec, uint64_t tokens, int64_t microusd);   /* of a request that is over */
void quota_forget(void);                       /* everything, for tests */

/* ---- exchange.c: one request and its answer ---------------------------------------------------------------------- */
struct conn;
struct path;
struct dialect;

enum outcome {
    OUTCOME_OK, OUTCOME_DEGRADED, OUTCOME_REFUSED, OUTCOME_ERROR, OUTCOME_CANCELLED, OUTCOME_TRUNCATED, OUTCOME_COUNT,
};

struct http_counts {
    uint64_t connections, answers[6] /* by hundreds of the status */, requests[ROUTE_CLOUD + 1][OUTCOME_COUNT];
    unsigned open;
};

struct exchange {
    struct daemon *daemon;
    struct http_counts *counts;
    struct conn *conn;
    struct evhttp_request *req;
    const struct path *path;
    const struct dialect *dialect;         /* the path's, or NULL */
    const struct head *head;
    const struct api_key *key;
    const char *peer;
    char id[ID_BYTES];
    uint64_t started_usec;
    struct arena arena;
    void (*cancel)(struct exchange *x);    /* the client left before the answer; x is freed next. May be NULL */
    void *arg;                             /* of whoever set cancel */

    /* Of a dialect's exchange. */
    struct request *request;
    bool stream, include_usage, started;   /* started: the status line is out */
    bool decided;                          /* meta is known; its strings are the arena's */
    struct request_meta meta;
    struct buf text;                       /* the answer so far, when it is not streamed */
    json_t *logprobs;                      /* the same for log-probabilities; NULL: none */
    json_t *calls;                         /* the same for calls, an array in OpenAI's shape of tool_calls; NULL: none */
    struct buf arguments;                  /* of the last of them, until it is whole */
    void *state;                           /* of the dialect, in the arena; NULL until it sets it */
    json_t *keep;                          /* of the dialect, released with the exchange; NULL until it sets it */
    struct event *ping;
    bool quiet;                            /* nothing was written since the ping timer last fired */
    bool lost;                             /* no memory for an event: the stream may not end well */
};

/* Made by http.c when a request is whole; runs until it has answered or its client left. */
struct exchange *exchange_new(struct daemon *d, struct http_counts *counts, struct conn *c, struct evhttp_request *req);
/* The client left: cancel what runs. Frees x. */
void exchange_gone(struct exchange *x);

/* Each of these answers and frees x. */
void exchange_reply(struct exchange *x, int status, const char *type, const void *data, size_t len);
void exchange_reply_json(struct exchange *x, int status, json_t *body /* taken; NULL: no memory */);
void exchange_reply_error(struct exchange *x, const struct request_error *e);
void exchange_reply_fault(struct exchange *x, int r, const struct request_error *e);   /* r: -ENOMEM, else *e says it */

/* Streams: bytes of the body, between a dialect's begin and end. */
void exchange_write(struct exchange *x, const void *data, size_t len);
/* The body as a JSON object, new reference at *ret; its bytes are let go of. 0, -ENOMEM, -EINVAL with *e. */
int exchange_body(struct exchange *x, json_t **ret, struct request_error *e);
/* Parse the body, start the request, answer through the path's dialect. */
void exchange_chat(struct exchange *x);

/* "0.000123" */
#define COST_BYTES 32
void cost_text(char out[COST_BYTES], int64_t microusd);
const char *status_phrase(int status);

/* What exchange.c needs of http.c. */
struct evbuffer *conn_output(const struct conn *c);            /* what waits to be sent */
void conn_answered(struct conn *c);                            /* its exchange is over */
const char *conn_allow_origin(const struct conn *c);           /* or NULL */
bool conn_closes(const struct conn *c);                        /* say Connection: close */
void conn_watch(struct conn *c);                               /* bytes were queued: apply back-pressure */

/* ---- Dialects and paths ------------------------------------------------------------------------------------------ */
/* One API in front of struct chat_request. `error` makes the body of a refusal. For a stream, `begin`, `delta`, `end`
 * and `fail` write events with exchange_write(); for a whole answer `answer` makes the body from x->text, x->logprobs,
 * x->calls, x->meta. */
struct dialect {
    const char *name;                      /* as recorded */
    const char *stream_type;               /* Content-Type of a stream */
    const char *id_header;                 /* a header beside x-request-id that tells the request's id, or NULL */
    const char *ping;                      /* bytes that keep a silent stream alive, or NULL */
    /* 0 with *ret; 1: it has answered by itself, and x is gone; -ENOMEM; -EINVAL with *e, its strings static or in
     * x->arena. What it must remember until the end is at x->state and x->keep; for a stream, x->text and x->arguments
     * are its own too. */
    int (*parse)(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e);
    void (*begin)(struct exchange *x);
    void (*delta)(struct exchange *x, const struct request_delta *d);
    void (*end)(struct exchange *x, const struct request_result *res);
    void (*fail)(struct exchange *x, const struct request_error *e);
    json_t *(*answer)(struct exchange *x, const struct request_result *res);
    json_t *(*error)(const struct request_error *e);
};
extern const struct dialect openai_chat, openai_responses, openai_completions, openai_embeddings, openai_tokenize,
    openai_detokenize, anthropic_messages, anthropic_count, ollama_chat, ollama_generate,
    ollama_embed, ollama_embeddings;
json_t *openai_error(const struct request_error *e);           /* also the shape of tern's own paths */

struct path {
    const char *method, *path;             /* GET stands for HEAD too */
    bool prefix;                           /* path ends in '/', and something follows it */
    bool open;                             /* needs no key */
    void (*run)(struct exchange *x);
    const struct dialect *dialect;         /* or NULL */
};

/* ---- api.c, metrics.c -------------------------------------------------------------------------------------------- */
void api_health(struct exchange *x);
void api_ready(struct exchange *x);
void api_models(struct exchange *x);
void api_model(struct exchange *x);
void api_status(struct exchange *x);
void api_log(struct exchange *x);
void api_why(struct exchange *x);
void api_stats(struct exchange *x);
void metrics_show(struct exchange *x);

/* ---- ollama_api.c ------------------------------------------------------------------------------------------------ */
void ollama_root(struct exchange *x);
void ollama_tags(struct exchange *x);
void ollama_show(struct exchange *x);
void ollama_ps(struct exchange *x);
void ollama_version(struct exchange *x);
