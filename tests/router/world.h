/* A router between two made-up workers, in one loop: the real policy, the real store on a scratch directory, and at
 * the other ends of the sockets an engine and an egress that play what a test tells them. Every START that egress gets
 * and every byte that a client gets is held against the database, read through a connection of its own. */
#pragma once

#include <criterion/criterion.h>
#include <sqlite3.h>
#include "base/clock.h"
#include "router/internal.h"

/* Log-probabilities, with margins and entropies to match: such an answer is kept, or abandoned within the window. */
#define SURE (-0.0005)
#define UNSURE (-8.0)

/* What the engine does with one run; a number that is 0 does not happen. */
struct engine_play {
    unsigned n_tokens;
    double logprob, last_logprob;             /* of all tokens; of the last one, 0: the same */
    unsigned stall_at, die_at, error_at;      /* after so many tokens, less one: say nothing more, exit, fail */
    const char *refuse;                       /* with this code */
    bool call;                                /* the first token is a call's name, the others its arguments */
};
/* What egress does with one call. */
struct cloud_play {
    unsigned n_chunks;
    unsigned stall_at, die_at, cut_at, error_event_at, garbage_at;   /* after so many chunks, less one */
    const char *result, *error;               /* END at once, instead of an answer */
    int status, retry_after_sec;
    bool no_usage, whole, empty;              /* whole: a completion that came in one event */
    const char *const *said;                  /* these events instead, until NULL */
};

struct fake_run {
    uint64_t id;
    unsigned step;
    bool over;
    union { struct engine_play engine; struct cloud_play cloud; };
};
struct fake {
    struct world *world;
    struct bufferevent *bev;                  /* NULL: dead */
    struct frame_reader in;
    struct fake_run runs[512];
    unsigned n_runs, n_starts, n_cancels, n_pauses, n_resumes, n_reloads;
    struct event tick, birth;
    unsigned birth_msec;                      /* how long the next one takes to come, after a death */
    bool mute;                                /* never READY */
};

struct world {
    char dir[64], path[96];
    struct event_base *base;
    struct mailbox mailbox;
    struct event mail;
    struct store *store;
    sqlite3 *db;                              /* the auditor's */
    struct router_config *config;
    struct router *router;
    struct fake engine, egress;
    struct engine_play engine_play;
    struct cloud_play cloud_play;
    void (*choose)(struct world *w);          /* before each START, to change the plays */
    unsigned max_requests;
    json_t *last_body;                        /* what egress was given last */
    unsigned n_downs[2];
    uint64_t seed;
};

/* One client. */
struct client {
    struct world *world;
    struct request *request;                  /* NULL: over */
    char id[ID_BYTES];
    unsigned n_begin, n_delta, n_end, n_fail;
    unsigned cancel_at, pause_at;             /* leave, or pause, at this delta */
    bool left;
    struct buf text;                          /* a call's name as "[name id]", or "[name new]" of our making */
    size_t n_logprobs;
    enum route route;
    bool degraded;
    char reason[32], model[32], finish[16], code[32], type[32], message[256];
    int http_status;
    unsigned retry_after_sec;
    struct request_result result;             /* its pointers are gone */
    float vectors[6];
};

void world_init(struct world *w, void (*configure)(struct world *w));   /* NULL, or called before all runs */
void world_done(struct world *w);                  /* waits until the router is idle */
void world_spin(struct world *w, unsigned msec);   /* run the loop for a while */
int64_t world_count(struct world *w, const char *sql, const char *id);  /* the number a query yields; id may be NULL */
char *world_text(struct world *w, const char *sql, const char *id);     /* the one text, owned by the caller; "" none */
uint64_t world_random(struct world *w, uint64_t below);

struct ask_for { const char *model, *label, *mode, *content; bool stream, logprobs; uint64_t deadline_usec; enum chat_task task;
                 const char *body; /* JSON, instead of all before but label and mode */ };
/* 0, or what request_start() returned; a refusal fills the client's http_status, code and message. */
int client_start(struct client *c, struct world *w, const struct ask_for *a);
void client_done(struct client *c);

#define WAIT_FOR(w, cond) do {                                                              \
    uint64_t give_up_ = clock_usec() + 20 * USEC_PER_SEC;                                   \
    while (!(cond)) {                                                                       \
        cr_assert(clock_usec() < give_up_, "waited in vain for " #cond);                    \
        event_base_loop((w)->base, EVLOOP_ONCE);                                            \
    }                                                                                       \
} while (0)
#define WAIT_OVER(w, c) WAIT_FOR(w, (c)->request == NULL)
