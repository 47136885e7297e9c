/* The writer thread: takes what is queued, commits it as one transaction, and sends the entries back with their
 * results. One fsync serves the whole group, and nothing is called done before that fsync has returned.
 *
 * A record that breaks a constraint fails alone. Any other fault fails the whole transaction, closes the connection
 * and makes the store unhealthy. Nothing is tried a second time on the same connection: after a failed fsync the
 * kernel has marked pages clean that never reached the disk. Recovery opens the file anew, moves the log into the
 * database with a checkpoint, which writes and syncs those pages again, and commits a heartbeat; only then is the
 * store healthy. A record that was reported as failed may still be found afterwards, when its fault came after its
 * bytes; one that was reported as done is always found.
 *
 * While unhealthy, what is appended fails at once, and the file is tried again after pauses that grow. */
#include <errno.h>
#include "base/clock.h"
#include "store/internal.h"

#define BATCH_MAX 1000
#define TICK_USEC USEC_PER_SEC                     /* the watchdog's beat when idle */
#define PAUSE_MIN_USEC (100 * USEC_PER_MSEC)
#define PAUSE_MAX_USEC (5 * USEC_PER_SEC)

static int heartbeat(sqlite3 *db)
{
    return db_exec(db, "INSERT INTO meta VALUES ('heartbeat', unixepoch())"
                       " ON CONFLICT (key) DO UPDATE SET value = excluded.value");
}

/* What a fault leaves behind in the log reaches the disk here, or shows that it cannot. A reader only defers it. */
static int checkpoint(sqlite3 *db)
{
    int code = sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);

    return (code & 0xff) == SQLITE_BUSY ? SQLITE_OK : code;
}

/* Read in every transaction rather than kept, so that a row put in by another hand stops nothing. */
static const char last_n[] =
    "SELECT max((SELECT ifnull(max(n), 0) FROM request),"
    " (SELECT ifnull(max(n), 0) FROM decision), (SELECT ifnull(max(n), 0) FROM attempt),"
    " (SELECT ifnull(max(n), 0) FROM egress), (SELECT ifnull(max(n), 0) FROM outcome))";

/* An SQLite code; the statement is ready again either way. */
static int run(sqlite3_stmt *stmt, int64_t *ret)
{
    int code = sqlite3_step(stmt);

    if (code == SQLITE_ROW && ret)
        *ret = sqlite3_column_int64(stmt, 0);
    sqlite3_reset(stmt);
    return code == SQLITE_ROW || code == SQLITE_DONE ? SQLITE_OK : code;
}

void writer_close(struct store *s)
{
    struct writer *w = &s->writer;

    for (int kind = 0; kind < STORE_N_KINDS; kind++) {
        sqlite3_finalize(w->insert[kind]);
        w->insert[kind] = NULL;
    }
    sqlite3_finalize(TAKE(w->begin));
    sqlite3_finalize(TAKE(w->commit));
    sqlite3_finalize(TAKE(w->last_n));
    db_closep(&w->db);
}

int writer_open(struct store *s, enum db_mode mode, struct err *err)
{
    struct writer *w = &s->writer;
    int code, r;

    r = db_open(&w->db, &s->c, mode, err);
    if (r < 0)
        return r;
    code = checkpoint(w->db);
    for (int kind = 0; code == SQLITE_OK && kind < STORE_N_KINDS; kind++)
        code = record_prepare(w->db, (enum store_kind)kind, &w->insert[kind]);
    if (code == SQLITE_OK)
        code = sqlite3_prepare_v3(w->db, "BEGIN IMMEDIATE", -1, SQLITE_PREPARE_PERSISTENT, &w->begin, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_prepare_v3(w->db, "COMMIT", -1, SQLITE_PREPARE_PERSISTENT, &w->commit, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_prepare_v3(w->db, last_n, -1, SQLITE_PREPARE_PERSISTENT, &w->last_n, NULL);
    if (code == SQLITE_OK)
        code = heartbeat(w->db);
    if (code != SQLITE_OK) {
        r = db_fault(err, s->c.path, code, sqlite3_errmsg(w->db));
        writer_close(s);
        return r;
    }
    w->pause_usec = PAUSE_MIN_USEC;
    return 0;
}

/* The fault of the record alone: its statement is undone, the transaction goes on. */
static bool is_of_record(int code)
{
    return (code & 0xff) == SQLITE_CONSTRAINT || (code & 0xff) == SQLITE_MISMATCH || (code & 0xff) == SQLITE_TOOBIG;
}

/* Insert and commit, giving each entry its result. An SQLite code: on a fault nothing of the batch counts. */
static int commit(struct writer *w, const struct job_list *batch)
{
    int64_t n = 0;
    int code;

    if (db_moved(w->db))
        return SQLITE_READONLY_DBMOVED;
    code = run(w->begin, NULL);
    if (code == SQLITE_OK)
        code = run(w->last_n, &n);
    if (code != SQLITE_OK)
        return code;
    for (struct job *j = batch->head; j; j = j->next) {
        struct entry *e = (struct entry *)j;

        code = record_insert(w->insert[e->rec.kind], &e->rec, n + 1);
        if (code == SQLITE_DONE)
            n++;
        else if (is_of_record(code))
            e->result = STORE_E_FAILED;
        else
            return code;
    }
    return run(w->commit, NULL);
}

static void set_fault(struct store *s, int code)
{
    struct writer *w = &s->writer;

    writer_close(s);                               /* rolls back */
    atomic_store(&s->fault, code);
    w->retry_usec = clock_usec() + w->pause_usec;
    w->pause_usec = MIN(w->pause_usec * 2, PAUSE_MAX_USEC);
}

static void write_batch(struct store *s, struct job_list *batch)
{
    int code = atomic_load(&s->fault);

    if (code == SQLITE_OK) {
        code = commit(&s->writer, batch);
        if (code != SQLITE_OK)
            set_fault(s, code);
    }
    if (code != SQLITE_OK)
        for (struct job *j = batch->head; j; j = j->next)
            ((struct entry *)j)->result = STORE_E_FAILED;
    outbox_post(s->outbox, batch);
}

static void recover(struct store *s)
{
    if (writer_open(s, DB_WRITE, NULL) < 0)
        set_fault(s, atomic_load(&s->fault));
    else
        atomic_store(&s->fault, SQLITE_OK);
}

void *writer_main(void *store)
{
    struct store *s = store;
    struct job_list batch;
    uint64_t until;

    pthread_setname_np(pthread_self(), "writer");
    do {
        uint64_t now = clock_usec();

        atomic_store(&s->beat_usec, now);
        if (atomic_load(&s->fault) != SQLITE_OK && now >= s->writer.retry_usec)
            recover(s);
        until = now + TICK_USEC;
        if (atomic_load(&s->fault) != SQLITE_OK)
            until = MIN(until, s->writer.retry_usec);
        if (!queue_take(&s->records, &batch, BATCH_MAX, until))
            break;
        if (batch.head)
            write_batch(s, &batch);
    } while (true);
    return NULL;
}
