/* What the files of store/ share: jobs that travel from the loop to a thread and back, the two threads, and SQLite.
 *
 *   loop --queue_push()--> writer or reader --outbox_post()--> loop, where job->finish() calls back and frees
 *
 * A connection belongs to one thread, so SQLite's own locks are off. */
#pragma once

#include <sqlite3.h>
#include <stdatomic.h>
#include "store/store.h"

/* ---- Jobs and the ways they travel (queue.c) --------------------------------------------------------------------- */
struct job {
    struct job *next;
    void (*finish)(struct job *j, bool deliver);   /* on the loop: calls back when `deliver`, and frees */
};

struct job_list {
    struct job *head, *tail;
    unsigned n;
};
void job_list_add(struct job_list *l, struct job *j);
void job_list_append(struct job_list *l, struct job_list *more);   /* moves all of `more`, which is empty afterwards */

/* The loop pushes, one thread takes. Jobs nobody waits for yet ("lazy") may lie for QUEUE_LAZY_USEC, so that they travel
 * with the next ones that somebody does wait for. */
#define QUEUE_LAZY_USEC (5 * USEC_PER_MSEC)
struct queue {
    pthread_mutex_t lock;
    pthread_cond_t wake;                           /* on the monotonic clock */
    struct job_list jobs;
    uint64_t due_usec;                             /* of the jobs: when they are to be taken; 0: now */
    bool waiting, stop;                            /* waiting: a thread sleeps on `wake` */
};
void queue_init(struct queue *q);
void queue_done(struct queue *q);                  /* drops what is left */
void queue_push(struct queue *q, struct job_list *jobs, bool lazy);   /* takes the jobs, of which there may be none */
unsigned queue_length(struct queue *q);
void queue_stop(struct queue *q);
/* Move at most `max` jobs to *ret, waiting for the first until the monotonic time `until_usec`, so that the list may
 * come back empty. False when the queue is stopped and empty. */
bool queue_take(struct queue *q, struct job_list *ret, unsigned max, uint64_t until_usec);

/* The way back. It owns the one mail that is in the loop's mailbox while anything waits here, and outlives the store
 * when that mail cannot be taken back. */
struct outbox;
struct outbox *outbox_new(struct mailbox *mailbox);
void outbox_post(struct outbox *o, struct job_list *jobs);   /* any thread; takes the jobs */
void outbox_free(struct outbox *o);                /* from the loop, the threads gone; drops what was not delivered */

/* ---- Records (record.c) ------------------------------------------------------------------------------------------ */
#define STORE_N_KINDS (STORE_OUTCOME + 1)

struct entry {
    struct job job;
    struct store_record rec;
    store_done_fn *done;
    void *arg;
    int result;
    char strings[];                                /* what rec points to */
};
struct entry *entry_new(const struct store_record *rec, store_done_fn *done, void *arg);   /* NULL: no memory */
/* The INSERT of a kind, prepared. An SQLite code. */
int record_prepare(sqlite3 *db, enum store_kind kind, sqlite3_stmt **ret);
/* Run it for `rec` as record number n. SQLITE_DONE, or an SQLite code; the statement is ready again either way. */
int record_insert(sqlite3_stmt *insert, const struct store_record *rec, int64_t n);

/* ---- SQLite (schema.c) ------------------------------------------------------------------------------------------- */
enum db_mode { DB_CREATE, DB_WRITE, DB_READ };
/* Open and set up a connection; DB_CREATE also makes the file and migrates. 0, or negative with *err. */
int db_open(sqlite3 **ret, const struct store_config *c, enum db_mode mode, struct err *err);
void db_closep(sqlite3 **db);                      /* sets NULL; NULL is allowed */
int db_exec(sqlite3 *db, const char *sql);         /* an SQLite code */
int db_read_int(sqlite3 *db, const char *sql, int64_t *ret);   /* the one number that `sql` yields; an SQLite code */
bool db_moved(sqlite3 *db);                        /* the file is no longer where it was opened */
int db_fault(struct err *err, const char *path, int code, const char *words);   /* -errno of an SQLite code */

/* ---- The store --------------------------------------------------------------------------------------------------- */
struct writer {                                    /* the writer thread's own, after store_open() */
    sqlite3 *db;                                   /* NULL after a fault */
    sqlite3_stmt *insert[STORE_N_KINDS], *begin, *commit, *last_n;
    uint64_t retry_usec, pause_usec;               /* after a fault: when to try again; the wait after that */
};

struct store {
    struct store_config c;
    char *path;
    int lock_fd;
    unsigned in_flight, holds;                     /* the loop's own, and so are: */
    struct job_list held;
    bool urgent;
    atomic_int fault;                              /* the SQLite code that made us unhealthy; SQLITE_OK: healthy */
    _Atomic uint64_t beat_usec;
    atomic_bool stopping;                          /* ends a query that is running */
    struct outbox *outbox;
    struct queue records, queries;
    pthread_t writer_thread, reader_thread;
    bool writer_started, reader_started;
    struct writer writer;
};

int writer_open(struct store *s, enum db_mode mode, struct err *err);
void writer_close(struct store *s);
void *writer_main(void *store);
void *reader_main(void *store);
