/* The audit store: SQLite in WAL with synchronous=FULL, one writer thread, one reader thread.
 *
 * Records are only ever added, never changed, so that a later hash chain can cover them: a request is one row in `request`,
 * one in `decision` for every stage decided, one in `attempt` for every tier tried, one in `egress` for every body that
 * leaves the device, and one in `outcome` when it is over. A request with no `outcome` row was cut off by a crash.
 *
 * The writer commits whatever is queued as one transaction (group commit) and only then tells each appender, so "done"
 * means durable. Callbacks run on the loop through its mailbox. Nothing here logs, and no prompt text is stored: the prompt
 * appears as a keyed digest only. */
#pragma once

#include <stdbool.h>
#include "base/err.h"
#include "base/id.h"
#include "base/json.h"
#include "base/mailbox.h"

struct store;

struct store_config {
    const char *path;            /* database file; its directory must exist */
    unsigned max_requests;       /* places for requests in flight; see store_reserve() */
    unsigned busy_timeout_msec;
    bool sync_normal;            /* test only: synchronous=NORMAL, the control that does lose rows */
};

/* Open, migrate, start the threads. `mailbox` is the loop's, borrowed. A second process on the same database is refused
 * (an advisory lock on PATH.lock). 0, or negative with *err naming path and remedy. */
int store_open(struct store **ret, const struct store_config *c, struct mailbox *mailbox, struct err *err);
/* Commit everything queued, stop the threads, close. Pending callbacks are dropped. */
void store_close(struct store *s);

/* ---- Appending ------------------------------------------------------------------------------------------------------ */
#define STORE_E_FULL   1         /* no place: answer 503 with Retry-After */
#define STORE_E_FAILED 2         /* the writer met a disk fault (full, read-only, I/O): nothing is durable until it recovers */

/* A place for one request in flight: what is appended for it later cannot fail for lack of room. 0 or STORE_E_FULL or
 * STORE_E_FAILED. From the loop. */
int store_reserve(struct store *s);
void store_release(struct store *s);

enum store_kind { STORE_REQUEST, STORE_DECISION, STORE_ATTEMPT, STORE_EGRESS, STORE_OUTCOME };

/* Strings are borrowed until store_append() returns (it copies). NULL strings are stored as NULL. */
struct store_record {
    enum store_kind kind;
    char request_id[ID_BYTES];
    uint64_t time_usec;                  /* wall clock */
    union {
        struct {
            const char *dialect, *key, *peer, *mode, *model_asked, *label, *label_source, *policy_digest, *model_digest;
            uint32_t n_messages; uint64_t content_bytes;
            uint8_t prompt_digest[32];   /* HMAC-SHA256(key of this run, canonical messages) */
            bool stream;
        } request;
        struct {
            uint32_t seq;                /* 0, 1, … within the request */
            const char *stage, *route, *endpoint, *model, *reason, *features_json, *candidates_json;
            double score, threshold;     /* NAN: NULL */
            bool degraded;
        } decision;
        struct {
            uint32_t seq;
            const char *tier, *endpoint, *model, *result, *error;   /* result: "ok", "failed", "cancelled", "abandoned"; error: class, never text of a body */
            int http_status;                                        /* 0: none */
            uint64_t started_usec, first_byte_usec, ended_usec;     /* wall clock; first_byte 0: none came */
            uint32_t tokens_in, tokens_out;
        } attempt;
        struct {
            uint32_t seq;                /* of the attempt */
            const char *endpoint, *host, *region, *label;
            uint64_t bytes; uint8_t body_digest[32];
            uint32_t redactions;
        } egress;
        struct {
            const char *outcome;         /* "ok", "degraded", "refused", "error", "cancelled", "truncated" */
            const char *route, *endpoint, *model, *finish, *error;
            int http_status;
            uint32_t tokens_in, tokens_out;
            int64_t cost_microusd;
            uint64_t first_token_usec, latency_usec;                /* since the request came; first token 0: none */
            double confidence;                                      /* NAN: NULL */
        } outcome;
    };
};

/* Queue a record; `done(arg, r)` runs on the loop when it is durable (r == 0) or could not be written (r == STORE_E_FAILED).
 * done may be NULL. 0, or -ENOMEM (done is not called). Order of appends is the order of rows. From the loop. */
typedef void store_done_fn(void *arg, int r);
int store_append(struct store *s, const struct store_record *rec, store_done_fn *done, void *arg);
/* What is appended between the two goes to the writer together, and so into one commit. Unless it, or anything appended
 * before, is waited for, it may lie for 5 ms so that it shares a commit with what comes next. They nest. From the loop. */
void store_hold(struct store *s);
void store_flush(struct store *s, bool waited_for);

bool store_healthy(const struct store *s);                 /* false after a fault until a commit succeeds again */
const char *store_fault(const struct store *s);            /* that fault in words for the log; NULL while healthy */
uint64_t store_writer_beat_usec(const struct store *s);    /* monotonic time the writer last came round, for the watchdog */
unsigned store_in_flight(const struct store *s);

/* ---- Asking ---------------------------------------------------------------------------------------------------------- */
enum store_ask { STORE_LOG, STORE_WHY, STORE_STATS };
struct store_query {
    enum store_ask ask;
    const char *id;                                        /* WHY */
    const char *route, *reason, *label, *outcome, *key;    /* LOG and STATS filters; NULL: any */
    uint64_t since_usec, until_usec;                       /* wall clock; 0: open */
    unsigned limit;                                        /* LOG: newest first, 1..1000 */
};
/* Run on the reader thread with a time limit; `done(arg, result, err)` on the loop owns `result` (NULL on a fault).
 *   LOG    {"rows":[{decisions_v columns by name}, …]}
 *   WHY    {"request":{…},"decisions":[…],"attempts":[…],"egress":[…],"outcome":{…}|null} or null when unknown
 *   STATS  {"requests":n,"local":n,"cloud":n,"refused":n,"degraded":n,"escalated":n,"cost_microusd":n,"bytes_left":n,
 *           "tokens_in":n,"tokens_out":n,"latency_ms":{"local":{"p50":…,"p95":…},"cloud":{…}},"reasons":{code:n,…}}
 * WHY's members are named as the fields of struct store_record, and with each n, the record's number, and time (RFC 3339);
 * features and candidates are parsed, digests are hex, what is none is null.
 * In STATS, escalated requests began with the local tier and ended with the cloud.
 * 0, -ENOMEM, or -EBUSY when too many questions wait. */
typedef void store_answer_fn(void *arg, json_t *result, const struct err *err);
int store_query(struct store *s, const struct store_query *q, store_answer_fn *done, void *arg);

/* Database views, stable for auditors' own SQL:
 *   decisions_v (id, time, key, label, route, reason, model, score, threshold, tokens_in, tokens_out, cost_microusd,
 *                bytes_left, latency_ms, outcome)        one row a request; its last decision; outcome 'lost' when none
 *   attempts_v  (id, seq, time, tier, endpoint, model, result, error, http_status, first_byte_ms, duration_ms, tokens_in,
 *                tokens_out, bytes_left, host) */
