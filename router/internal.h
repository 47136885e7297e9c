/* What the files of router/ share: the request, the two tiers that answer it, and the link to a worker. All of it
 * belongs to the loop's thread.
 *
 *   request.c   the life of a request: the step table
 *   attempt.c   one try of a tier, and the answer it brings
 *   local.c     the engine worker and its frames
 *   line.c      the requests that wait for it
 *   cloud.c     the egress worker: bodies out, breakers and retries
 *   chunk.c     what a cloud says, an event at a time
 *   link.c      frames over a worker's socket
 *   router.c    configuration, models' names, metrics, status
 *
 * Both tiers have one shape. A request is with at most one at a time, as its `attempt`; the tier reports text and the
 * end of it through attempt_text(), attempt_finish() and attempt_fail(), and request_run() sees what is to be done. */
#pragma once

#include <event2/bufferevent.h>
#include <event2/event_struct.h>
#include <openssl/evp.h>
#include <sys/queue.h>
#include "base/arena.h"
#include "engine/engine.h"
#include "router/router.h"

/* ---- link.c ------------------------------------------------------------------------------------------------------ */
struct link {
    struct event_base *base;
    struct bufferevent *bev;               /* NULL: no worker */
    struct frame_reader in;
    struct event ping;
    uint32_t ping_type;
    uint64_t beat_usec;                    /* when the worker last said anything */
    int (*on_frame)(struct router *r, const struct frame *f);   /* negative: the worker talks nonsense, hang up */
    void (*on_down)(struct router *r, bool replaced);   /* it is closed; may be attached again, unless replaced */
    struct router *router;
};
void link_init(struct link *l, struct router *r, struct event_base *base, uint32_t ping_type,
               int (*on_frame)(struct router *, const struct frame *), void (*on_down)(struct router *, bool));
void link_done(struct link *l);            /* without on_down */
int link_attach(struct link *l, int fd);   /* takes fd, in any case; hangs up on the one before. 0, -ENOMEM */
/* Queue a frame. 0; -ENOTCONN; -ENOMEM; -ENOBUFS when the worker has not read what was sent before. Frames without
 * payload are never refused for that, so that a cancel always goes out. */
int link_send(struct link *l, uint32_t type, uint64_t id, const void *data, size_t len);

/* ---- A request --------------------------------------------------------------------------------------------------- */
#define ANSWER_MAX_BYTES (16u << 20)       /* of one answer held in memory */

enum step {
    STEP_MODEL, STEP_LABEL, STEP_DECIDE, STEP_LOCAL, STEP_CLOUD, STEP_SEND, STEP_ANSWER, STEP_FALLBACK, STEP_BACKOFF,
    STEP_RELEASE, STEP_RECORD, STEP_DONE,
    STEP_WAIT,                             /* stay, and be called again when anything happened to the request */
};

/* A part of an answer: text, a call's name or a part of its arguments. */
struct piece { enum answer_channel channel; unsigned call; const char *id /* arena, of a name */; size_t len; };

/* Pieces of an answer that the sink has not got yet, their bytes in a row in `text`, and what is known of the whole. */
struct answer {
    struct buf text;
    struct buf pieces;                     /* of struct piece */
    unsigned n_calls;                      /* begun so far */
    json_t *logprobs;                      /* array, or NULL */
    uint64_t bytes;                        /* of all text, also what was released */
    const char *finish;                    /* static, or NULL */
    const char *stop;                      /* one of the request's, or NULL */
    uint64_t prefill_usec, decode_usec;
    uint32_t tokens_in, tokens_out, tokens_cached;
    struct buf result;                     /* of a task that is no answer: floats or ids */
    uint32_t n_vectors, width;
};

/* One try of one tier. */
struct attempt {
    enum { ATTEMPT_NONE, ATTEMPT_RUNNING, ATTEMPT_OK, ATTEMPT_FAILED } state;
    enum route tier;
    int endpoint;                          /* -1: local */
    uint32_t seq;                          /* within the request */
    uint64_t id;                           /* of its frames */
    uint64_t started_usec, first_byte_usec, ended_usec;   /* wall clock, 0: not yet */
    char error[32];                        /* class, never text of a body */
    bool sent;                             /* START went out */
    /* cloud: */
    bool usage_known;                      /* tokens are not estimates */
    size_t body_bytes;
    int http_status;
    unsigned retry_after_sec;
    bool may_repeat;                       /* the failure may pass: the same endpoint may be tried again */
    struct buf order;                      /* EGRESS_START's payload, until it is sent */
    const char *call_id;                   /* of the call that the cloud is at, as it said them; arena */
    int64_t call_index;
};

struct request {
    TAILQ_ENTRY(request) all;
    TAILQ_ENTRY(request) tier;             /* local.c's line or cloud.c's calls */
    struct router *router;
    struct router_config *config;
    struct chat_request *chat;
    struct arena arena;                    /* strings below */
    char id[ID_BYTES];
    struct { const char *dialect, *key, *peer, *label, *model; enum label key_label, max_label; bool has_key_label, batch; } asked;
    const struct request_sink *sink;       /* NULL: the client left */
    void *arg;
    uint64_t began_usec, deadline_usec;    /* monotonic */
    uint64_t created_sec;                  /* wall clock */

    enum step step;
    bool running;                          /* inside request_run() */
    struct event deadline, timer;          /* the whole time; the first step, pauses between attempts, the end */

    enum stage stage;                      /* of the next decision */
    struct policy_input in;
    struct policy_decision decision;       /* the last one */
    unsigned n_decisions, n_attempts;

    bool labelled;                         /* the request row was appended */
    bool place;                            /* reserved in the store */
    unsigned rows_pending;                 /* appended and not yet durable */
    bool rows_wanted;                      /* the request waits for one that the writer has not been given yet */
    bool rows_lost;                        /* one could not be written, or there is no place: no cloud */

    struct attempt attempt;
    unsigned attempts_here;                /* at the current endpoint */
    struct line_client *client;                 /* line.c's, while it waits for the engine or is with it */
    bool lost_engine, restarted;           /* the engine died under it; it was given to the next one */
    struct answer answer, kept;            /* kept: a whole local answer, while a cloud is asked for a better one */
    bool has_kept;
    bool hold, judged;                     /* nothing may be released before a decision; that of the window was taken */
    bool begun, paused, upstream_paused;

    struct request_error fault;            /* what to tell the client if nothing else answers */
    struct request_error beyond_local;     /* what the local model cannot do for it; no code: nothing */
    const char *outcome;                   /* set: the request is over, whatever step it is at */
    uint64_t first_token_usec;             /* since it began */
    uint64_t cost_microusd;
};

/* Do what can be done now. May free the request. */
void request_run(struct request *q);
void request_run_all(struct router *r);
/* What the client is told if no tier answers; the last one counts. Message in the arena, or static; NULL: no memory. */
void request_fault(struct request *q, int status, const char *type, const char *code, const char *message,
                   unsigned retry_after_sec);
void row_append(struct request *q, struct store_record *rec);   /* the id and the time are filled in */

/* ---- attempt.c --------------------------------------------------------------------------------------------------- */
void answer_init(struct answer *a);
void answer_done(struct answer *a);        /* empty afterwards */
void answer_begin(struct request *q);      /* once: the sink hears who answers */
void answer_flush(struct request *q);      /* release what is here, if every row is durable: the only place that does */
void attempt_open(struct request *q, enum route tier, int endpoint);
/* Leave the tier, if still at work, and append the attempt's row. `unfinished`: the result of one still at work. */
void attempt_close(struct request *q, const char *unfinished);
/* From the tiers, about the attempt under way. They only note it; request_run() follows. Text may fail it: too much. */
void attempt_text(struct request *q, const char *text, size_t len, json_t *logprobs /* taken, or NULL */);
/* A part of a call's name or arguments. An id, or "" for one made here, begins the next call, with a name; NULL goes on
 * with the last one. -EPROTO: there is none to go on with. */
int attempt_call(struct request *q, enum answer_channel channel, const char *id, const char *text, size_t len);
void attempt_fail(struct request *q, const char *error);
void attempt_finish(struct request *q, const char *finish);
const char *request_model(const struct request *q, enum route route, int endpoint);   /* that answers there, or NULL */
const char *request_endpoint(const struct request *q, int endpoint);                  /* name, or NULL */
double request_confidence(const struct request *q);             /* P(the local answer is right) so far; NAN: none */
struct request_meta request_meta(const struct request *q);

/* ---- line.c ----------------------------------------------------------------------------------------------------- */
enum line_class { LINE_INTERACTIVE, LINE_BATCH };

/* Whoever asks: its lines, and how many of its requests are with the engine. */
struct line_client {
    TAILQ_ENTRY(line_client) all;
    TAILQ_HEAD(, request) lines[2];        /* by class, in order of arrival */
    unsigned n_waiting[2], n_running;
    uint64_t turn;                         /* when it was served last, in turns of the line */
    bool is_key;
    char name[];
};
struct line {
    TAILQ_HEAD(, line_client) clients;         /* that have anything here */
    unsigned n_waiting;
    uint64_t turns, freed_usec;            /* freed_usec: when a place last became free with somebody waiting; 0: none */
    double gap_sec;                        /* mean time between two places becoming free, while somebody waits */
};
void line_init(struct line *s);
void line_done(struct line *s);          /* no request may be left */
#define LINE_E_FULL 1                     /* max wait already */
#define LINE_E_CLIENT 2                   /* max_client of its own do */
#define LINE_E_LATE 3                     /* its turn would come after its deadline */
int line_enter(struct line *s, struct request *q, unsigned max, unsigned max_client);    /* 0, or LINE_E_… */
void line_leave(struct line *s, struct request *q);                /* it no longer waits */
/* Take out the request whose turn it is: it counts as its client's run until line_ran(). NULL: nobody waits. */
struct request *line_next(struct line *s, bool batch_too);
void line_ran(struct line *s, struct line_client *c, bool paced);       /* paced: a place became free by a run's own end */
double line_wait_sec(const struct line *s, const struct request *q);   /* how long q would wait; 0: nothing known yet */

/* ---- local.c ----------------------------------------------------------------------------------------------------- */
#define LOCAL_MAX_SESSIONS 64
#define LOCAL_MAX_RUNS (LOCAL_MAX_SESSIONS + 64)

struct local {
    struct link link;
    bool ready;
    json_t *info;                          /* READY's, kept when the engine is gone: its name stays known */
    char *failure;                         /* ENGINE_FAILED's text */
    struct event grace;                    /* pending: an engine that is not ready may still come */
    /* At the engine. request NULL: abandoned, not yet ended; client NULL: it takes no session. */
    struct run { uint64_t id; struct request *request; struct line_client *client; bool batch; } runs[LOCAL_MAX_RUNS];
    unsigned n_runs, n_sessions, n_batch, n_attached;   /* of the runs: those with a session, and of these the batch ones */
    struct line line;                     /* wait for a session */
};
void local_init(struct router *r);
void local_done(struct router *r);
bool local_up(const struct router *r);     /* ready, or expected within the grace */
const char *local_model(const struct router *r);    /* the engine's name for it, or NULL when none was ever ready */
const char *local_digest(const struct router *r);   /* of the model's file, likewise */
#define LOCAL_E_BUSY 1
#define LOCAL_E_DOWN 2
#define LOCAL_E_CLIENT 3               /* this client has enough of its own waiting */
/* Can the model do what is asked? 0, or 1 with *ret_fault: what it cannot. */
int local_check(struct request *q, struct request_error *ret_fault);
int local_start(struct request *q);        /* run, or stand in line: 0, or LOCAL_E_… */
void local_stop(struct request *q);        /* forget the attempt; an engine at work on it is told to stop */
unsigned local_retry_after_sec(const struct request *q);

/* ---- cloud.c ----------------------------------------------------------------------------------------------------- */
struct cloud {
    struct link link;                      /* a worker that is still loading reads its orders afterwards */
    bool ready;
    struct event grace;                    /* pending: a worker that is not attached may still come */
    unsigned n_attached;
    TAILQ_HEAD(, request) calls;           /* sent, and not ended */
    struct cloud_known { char name[64]; struct breaker breaker; } endpoints[POLICY_MAX_ENDPOINTS];
    size_t n_endpoints;
    double retries;                        /* left in the budget */
};
void cloud_init(struct router *r);
void cloud_done(struct router *r);
bool cloud_attached(const struct router *r);
bool cloud_up(const struct router *r);     /* attached, or expected within the grace */
void cloud_set_config(struct router *r, const struct router_config *c);   /* breakers by name; a latch is released */
bool cloud_ready(const struct request *q, size_t endpoint);      /* its breaker would let a call through */
const struct breaker *cloud_breaker(const struct router *r, const char *endpoint);   /* or NULL */
/* Ask the breaker of q->decision.endpoint to let a call through, which cloud_prepare() makes, or cloud_stop() gives
 * back. */
bool cloud_admit(struct request *q);
/* Make the attempt's body and its digest, and append the egress row. 0, -ENOMEM, -EMSGSIZE. */
int cloud_prepare(struct request *q);
int cloud_send(struct request *q);         /* the body leaves. Every row is durable. 0 or negative: nothing left */
void cloud_stop(struct request *q);        /* forget the attempt; egress hangs up */
void cloud_flow(struct request *q);        /* tell egress of a change of q->paused */
/* Whether the failed attempt may be repeated at its endpoint, and after what pause. True takes from the budget. */
bool cloud_may_retry(struct request *q, uint64_t *ret_pause_usec);

/* ---- chunk.c ----------------------------------------------------------------------------------------------------- */
/* An event of the attempt under way: "[DONE]", or JSON in OpenAI's shape. 0; -ENOMEM; -EPROTO: not a chunk; -EIO: the
 * upstream reports a failure. */
int chunk_take(struct request *q, const uint8_t *data, size_t len);

/* ---- router.c ---------------------------------------------------------------------------------------------------- */
struct router {
    struct event_base *base;
    struct store *store;
    struct router_config *config;
    struct router_hooks hooks;
    struct local local;
    struct cloud cloud;
    TAILQ_HEAD(request_list, request) requests;
    unsigned in_flight;
    bool draining;
    EVP_MAC_CTX *digest;                   /* keyed by chance, for this process: digests do not tell prompts */
    uint64_t next_id;                      /* of attempts' frames */
    uint64_t rows_lost_logged_usec;
    char words[512];                       /* of the last fault that request_start() told */
    struct router_metrics metrics;
};
/* Read what the model's name asks for into q->in. 0; 1: nobody has this name, and *ret_fault says which are known, in
 * words that last until the next call; 2: the engine has not told its own name yet. */
int model_resolve(struct request *q, struct request_error *ret_fault);
void metrics_request(struct router *r, const struct request *q, uint64_t latency_usec);
