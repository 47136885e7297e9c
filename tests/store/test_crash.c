/* kill -9 at random moments: every record that was called done is in the database, which is sound, and the numbers
 * have no gap. A child appends without a pause and writes each id to a pipe from its callback; we kill it and look. */
#include <signal.h>
#include <sys/wait.h>
#include "tests/store/store_fixture.h"

#define ROUNDS 50

struct pending { char id[ID_BYTES]; int fd; unsigned *in_flight; };

static void tell(void *arg, int r)
{
    struct pending *p = arg;

    if (r == 0 && write(p->fd, p->id, ID_BYTES) != ID_BYTES)
        _exit(1);
    --*p->in_flight;
    free(p);
}

static void append_forever(struct fixture *f, int fd)
{
    struct store_config c = {.path = f->path, .max_requests = 8};
    unsigned in_flight = 0;
    struct err err = {0};

    if (store_open(&f->store, &c, &f->mailbox, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        _exit(1);
    }
    for (;;) {
        struct pollfd p = {.fd = f->mailbox.fd, .events = POLLIN};

        while (in_flight < 64) {
            struct pending *one = calloc(1, sizeof(*one));
            struct store_record r;

            id_new(one->id, clock_wall_usec());
            one->fd = fd;
            one->in_flight = &in_flight;
            r = request_record(one->id);
            if (store_append(f->store, &r, tell, one) < 0)
                _exit(1);
            in_flight++;
        }
        poll(&p, 1, -1);
        mailbox_run(&f->mailbox);
    }
}

Test(crash, nothing_acknowledged_is_lost, .timeout = 110)
{
    static char ids[1 << 20];
    struct fixture f;
    long n_told = 0, n_before = 0;
    char text[512];

    fixture_dir(&f);
    srandom(20251124);
    for (int round = 0; round < ROUNDS; round++) {
        sqlite3 *db;
        sqlite3_stmt *stmt;
        size_t len = 0;
        ssize_t n;
        uint64_t until;
        int fds[2];
        pid_t child;

        cr_assert_eq(pipe(fds), 0);
        child = fork();
        if (child == 0) {
            close(fds[0]);
            append_forever(&f, fds[1]);
        }
        close(fds[1]);
        until = clock_usec() + 5000 + (uint64_t)random() % 60000;
        while (clock_usec() < until) {
            struct pollfd p = {.fd = fds[0], .events = POLLIN};

            if (poll(&p, 1, 1) > 0 && len < sizeof(ids) && (n = read(fds[0], ids + len, sizeof(ids) - len)) > 0)
                len += (size_t)n;
        }
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (len < sizeof(ids) && (n = read(fds[0], ids + len, sizeof(ids) - len)) > 0)
            len += (size_t)n;
        close(fds[0]);

        cr_assert_eq(sqlite3_open(f.path, &db), SQLITE_OK);
        if (len) {
            cr_assert_eq(sqlite3_prepare_v2(db, "SELECT 1 FROM request WHERE id = ?", -1, &stmt, NULL), SQLITE_OK);
            for (size_t i = 0; i + ID_BYTES <= len; i += ID_BYTES) {
                sqlite3_bind_text(stmt, 1, ids + i, -1, SQLITE_STATIC);
                cr_assert_eq(sqlite3_step(stmt), SQLITE_ROW, "round %d: %s was acknowledged and is gone",
                             round, ids + i);
                sqlite3_reset(stmt);
                n_told++;
            }
            sqlite3_finalize(stmt);
        }
        sqlite3_close(db);
        if (n_told == 0)
            continue;
        cr_assert_str_eq(sql_text(f.path, "PRAGMA integrity_check", text), "ok");
        cr_assert_eq(sql_int(f.path, "SELECT max(n) - count(*) FROM request"), 0);
        cr_assert_geq(sql_int(f.path, "SELECT count(*) FROM request"), n_before);
        n_before = sql_int(f.path, "SELECT count(*) FROM request");
    }
    fprintf(stderr, "crash: %d kills, %ld acknowledged, %ld in the database\n", ROUNDS, n_told, n_before);
    cr_assert_gt(n_told, ROUNDS, "the child hardly ran");
    fixture_open(&f);
    fixture_done(&f);
}
