/* What the tests of the store share: a scratch directory, a loop that is only a mailbox, records, and a second SQLite
 * connection that looks at the file as an auditor would. */
#pragma once

#include <criterion/criterion.h>
#include <math.h>
#include <poll.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "base/clock.h"
#include "store/store.h"

struct fixture {
    char dir[64], path[96];
    struct mailbox mailbox;
    struct store *store;
    unsigned n_done, n_failed;     /* counted by on_done() */
};

static inline void fixture_dir(struct fixture *f)
{
    *f = (struct fixture) {0};
    snprintf(f->dir, sizeof(f->dir), "/tmp/tern-store-XXXXXX");
    cr_assert(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/audit.db", f->dir);
    cr_assert_eq(mailbox_init(&f->mailbox), 0);
}

static inline int fixture_try_open(struct fixture *f, struct err *err)
{
    struct store_config c = {.path = f->path, .max_requests = 8, .busy_timeout_msec = 200};

    return store_open(&f->store, &c, &f->mailbox, err);
}

static inline void fixture_open(struct fixture *f)
{
    struct err err = {0};

    cr_assert_eq(fixture_try_open(f, &err), 0, "%s", err.msg);
}

static inline void fixture_init(struct fixture *f)
{
    fixture_dir(f);
    fixture_open(f);
}

static inline void fixture_close(struct fixture *f)
{
    store_close(f->store);
    f->store = NULL;
}

static inline void fixture_done(struct fixture *f)
{
    static const char *const names[] = {"", "-wal", "-shm", "-journal", ".lock", ".away"};
    char name[128];

    fixture_close(f);
    mailbox_done(&f->mailbox);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(name, sizeof(name), "%s%s", f->path, names[i]);
        unlink(name);
    }
    rmdir(f->dir);
}

/* Run the mailbox until `cond` holds; a test that waits twenty seconds has failed. */
#define WAIT_FOR(f, cond) do {                                                              \
    uint64_t give_up_ = clock_usec() + 20 * USEC_PER_SEC;                                   \
    while (!(cond)) {                                                                       \
        struct pollfd p_ = {.fd = (f)->mailbox.fd, .events = POLLIN};                       \
        cr_assert(clock_usec() < give_up_, "waited in vain for " #cond);                    \
        if (poll(&p_, 1, 20) > 0)                                                           \
            mailbox_run(&(f)->mailbox);                                                     \
    }                                                                                       \
} while (0)

static inline void on_done(void *arg, int r)
{
    struct fixture *f = arg;

    f->n_done++;
    f->n_failed += r == STORE_E_FAILED;
}

static inline struct store_record request_record(const char *id)
{
    struct store_record r = {.kind = STORE_REQUEST, .time_usec = clock_wall_usec()};

    memcpy(r.request_id, id, ID_BYTES);
    r.request.dialect = "openai";
    r.request.label = "public";
    r.request.key = "alice";
    r.request.n_messages = 2;
    return r;
}

static inline struct store_record decision_record(const char *id, uint32_t seq, const char *route, const char *reason)
{
    struct store_record r = {.kind = STORE_DECISION, .time_usec = clock_wall_usec()};

    memcpy(r.request_id, id, ID_BYTES);
    r.decision.seq = seq;
    r.decision.route = route;
    r.decision.reason = reason;
    r.decision.score = r.decision.threshold = NAN;
    return r;
}

static inline struct store_record outcome_record(const char *id, const char *route, const char *outcome,
                                                 uint64_t latency_usec)
{
    struct store_record r = {.kind = STORE_OUTCOME, .time_usec = clock_wall_usec()};

    memcpy(r.request_id, id, ID_BYTES);
    r.outcome.outcome = outcome;
    r.outcome.route = route;
    r.outcome.latency_usec = latency_usec;
    r.outcome.confidence = NAN;
    return r;
}

/* Append and wait; the result that done() got. */
static inline int append_wait(struct fixture *f, const struct store_record *rec)
{
    unsigned want = f->n_done + 1, failed = f->n_failed;

    cr_assert_eq(store_append(f->store, rec, on_done, f), 0);
    WAIT_FOR(f, f->n_done == want);
    return f->n_failed > failed ? STORE_E_FAILED : 0;
}

/* ---- As an auditor ---- */
static inline int sql_code(const char *path, const char *sql)
{
    sqlite3 *db;
    int code = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL);

    if (code == SQLITE_OK) {
        sqlite3_busy_timeout(db, 2000);
        code = sqlite3_exec(db, sql, NULL, NULL, NULL);
    }
    sqlite3_close(db);
    return code;
}

/* The first row as text in `out`: its columns with spaces between, "-" for NULL; "" for no row. */
static inline const char *sql_text(const char *path, const char *sql, char out[512])
{
    sqlite3 *db;
    sqlite3_stmt *stmt = NULL;

    out[0] = '\0';
    cr_assert_eq(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    sqlite3_busy_timeout(db, 2000);
    cr_assert_eq(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(db));
    if (sqlite3_step(stmt) == SQLITE_ROW) {
        for (int i = 0, len = 0; i < sqlite3_column_count(stmt) && len < 512; i++) {
            const char *text = (const char *)sqlite3_column_text(stmt, i);

            len += snprintf(out + len, 512 - (size_t)len, "%s%s", i ? " " : "", text ? text : "-");
        }
    }
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return out;
}

static inline long sql_int(const char *path, const char *sql)
{
    char text[512];

    return atol(sql_text(path, sql, text));
}

/* ---- Asking ---- */
struct answer { json_t *result; struct err err; bool done; };

static inline void on_answer(void *arg, json_t *result, const struct err *err)
{
    struct answer *a = arg;

    a->result = result;
    if (err)
        a->err = *err;
    a->done = true;
}

static inline json_t *ask_wait(struct fixture *f, const struct store_query *q)
{
    struct answer a = {0};

    cr_assert_eq(store_query(f->store, q, on_answer, &a), 0);
    WAIT_FOR(f, a.done);
    cr_assert(a.result, "%s", a.err.msg);
    return a.result;
}
