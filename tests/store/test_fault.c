/* Disk faults: a full file system, a file that may not grow, a file made unwritable, a file taken away, and a lock
 * held by another program. Each time what is appended fails, what was done before stays, and the store recovers by
 * itself once the cause is gone. The root of a file system of a set size comes from a mount namespace; without the
 * right to make one that test is skipped.
 *
 * Then every single write and fsync that a run makes is made to fail in turn, once or from there on, by a VFS put
 * under SQLite: whatever is hit, what was called done is there afterwards. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include "tests/store/store_fixture.h"

static unsigned n_good;

/* Append one request of about `bytes`; its result, counted when good. */
static int append_one(struct fixture *f, size_t bytes)
{
    cleanup(freep) char *text = malloc(bytes + 1);
    struct store_record r;
    char id[ID_BYTES];
    int result;

    memset(text, 'x', bytes);
    text[bytes] = '\0';
    id_new(id, clock_wall_usec());
    r = request_record(id);
    r.request.model_asked = text;
    result = append_wait(f, &r);
    n_good += result == 0;
    return result;
}

/* Everything that was called done is there, once, numbered without a gap, and the file is sound. */
static void check_whole(struct fixture *f)
{
    char text[512];

    cr_assert_eq(sql_int(f->path, "SELECT count(*) FROM request"), n_good);
    cr_assert_eq(sql_int(f->path, "SELECT max(n) FROM request"), n_good);
    cr_assert_str_eq(sql_text(f->path, "PRAGMA integrity_check", text), "ok");
}

static void check_fails(struct fixture *f)
{
    cr_assert_eq(append_one(f, 10), STORE_E_FAILED);
    cr_assert_not(store_healthy(f->store));
    cr_assert(store_fault(f->store));
    cr_assert_eq(store_reserve(f->store), STORE_E_FAILED);
}

static void check_recovers(struct fixture *f)
{
    WAIT_FOR(f, store_healthy(f->store));
    cr_assert_null(store_fault(f->store));
    cr_assert_eq(store_reserve(f->store), 0);
    store_release(f->store);
    cr_assert_eq(append_one(f, 10), 0);
    check_whole(f);
}

Test(fault, file_may_not_grow)
{
    struct fixture f;
    struct rlimit before, limit;

    signal(SIGXFSZ, SIG_IGN);
    fixture_init(&f);
    cr_assert_eq(append_one(&f, 10), 0);
    getrlimit(RLIMIT_FSIZE, &before);
    limit = (struct rlimit) {.rlim_cur = 4096, .rlim_max = before.rlim_max};
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    check_fails(&f);
    /* Retries go on failing, and nobody is told otherwise. */
    usleep(500000);
    check_fails(&f);
    setrlimit(RLIMIT_FSIZE, &before);
    check_recovers(&f);
    fixture_done(&f);
}

Test(fault, full_file_system)
{
    struct fixture f;
    char filler[128], chunk[4096] = {0};
    int fd;

    fixture_dir(&f);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", f.dir, "tmpfs", 0, "size=2m") < 0) {
        fixture_done(&f);
        fprintf(stderr, "SKIPPED fault.full_file_system: no right to mount a tmpfs (%s)\n", strerror(errno));
        cr_skip_test("no right to mount a tmpfs");
    }
    fixture_open(&f);
    cr_assert_eq(append_one(&f, 10), 0);
    snprintf(filler, sizeof(filler), "%s/filler", f.dir);
    fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, chunk, sizeof(chunk)) > 0)
        ;
    close(fd);

    for (int i = 0; i < 1000 && append_one(&f, 20000) == 0; i++)
        ;
    check_fails(&f);
    cr_assert(strstr(store_fault(f.store), "full"), "%s", store_fault(f.store));
    unlink(filler);
    check_recovers(&f);
    fixture_close(&f);
    fixture_open(&f);
    check_whole(&f);
    fixture_close(&f);
    umount2(f.dir, MNT_DETACH);
    fixture_done(&f);
}

/* Removed or replaced under us: appending to the unlinked file would look durable and be lost. No new file is made. */
Test(fault, file_taken_away)
{
    struct fixture f;
    char away[128];
    struct answer a = {0};

    fixture_init(&f);
    cr_assert_eq(append_one(&f, 10), 0);
    json_decref(ask_wait(&f, &(struct store_query) {.ask = STORE_LOG}));
    snprintf(away, sizeof(away), "%s.away", f.path);
    cr_assert_eq(rename(f.path, away), 0);
    check_fails(&f);
    usleep(300000);
    cr_assert_eq(access(f.path, F_OK), -1, "no new file was made");
    cr_assert_eq(store_query(f.store, &(struct store_query) {.ask = STORE_LOG}, on_answer, &a), 0);
    WAIT_FOR(&f, a.done);
    cr_assert_null(a.result);
    cr_assert(strstr(a.err.msg, f.path), "%s", a.err.msg);
    cr_assert_eq(rename(away, f.path), 0);
    check_recovers(&f);
    fixture_done(&f);
}

Test(fault, locked_by_another)
{
    struct fixture f;
    sqlite3 *other;

    fixture_init(&f);
    cr_assert_eq(append_one(&f, 10), 0);
    cr_assert_eq(sqlite3_open(f.path, &other), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    check_fails(&f);
    cr_assert(strstr(store_fault(f.store), "locked"), "%s", store_fault(f.store));
    sqlite3_close(other);
    check_recovers(&f);
    fixture_done(&f);
}

/* Opening what cannot be written is refused with what to do. */
Test(fault, read_only_file_system)
{
    struct fixture f;
    struct err err = {0};

    fixture_dir(&f);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", f.dir, "tmpfs", 0, "size=2m") < 0) {
        fixture_done(&f);
        fprintf(stderr, "SKIPPED fault.read_only_file_system: no right to mount a tmpfs (%s)\n", strerror(errno));
        cr_skip_test("no right to mount a tmpfs");
    }
    fixture_open(&f);
    cr_assert_eq(append_one(&f, 10), 0);
    fixture_close(&f);
    cr_assert_eq(mount(NULL, f.dir, NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
    cr_assert_eq(fixture_try_open(&f, &err), -EROFS);
    cr_assert(strstr(err.msg, f.path) && strstr(err.msg, "writable"), "%s", err.msg);
    cr_assert_eq(mount(NULL, f.dir, NULL, MS_REMOUNT, NULL), 0);
    fixture_open(&f);
    cr_assert_eq(append_one(&f, 10), 0);
    check_whole(&f);
    fixture_close(&f);
    umount2(f.dir, MNT_DETACH);
    fixture_done(&f);
}

/* ---- A VFS that fails ---- */
static struct { const sqlite3_io_methods *real; sqlite3_io_methods faulty; } tables[4];   /* the unix VFS has several */
static const sqlite3_io_methods *real_methods;                 /* any of them: they write and sync alike */
static int (*real_open)(sqlite3_vfs *, const char *, sqlite3_file *, int, int *);
static atomic_int n_calls, n_syncs, fail_at, fail_until, n_opened;      /* calls fail_at <= n < fail_until fail */

static bool fails(void)
{
    int n = atomic_fetch_add(&n_calls, 1);

    return n >= atomic_load(&fail_at) && n < atomic_load(&fail_until);
}

static int faulty_write(sqlite3_file *file, const void *data, int len, sqlite3_int64 at)
{
    return fails() ? SQLITE_FULL : real_methods->xWrite(file, data, len, at);
}

static int faulty_sync(sqlite3_file *file, int flags)
{
    atomic_fetch_add(&n_syncs, 1);
    return fails() ? SQLITE_IOERR_FSYNC : real_methods->xSync(file, flags);
}

static int faulty_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *ret_flags)
{
    int code = real_open(vfs, name, file, flags, ret_flags);

    if (code == SQLITE_OK) {
        size_t i = 0;

        while (tables[i].real && tables[i].real != file->pMethods)
            i++;
        cr_assert_lt(i + 1, ARRAY_SIZE(tables));
        if (!tables[i].real) {
            tables[i].real = real_methods = file->pMethods;
            tables[i].faulty = *file->pMethods;
            tables[i].faulty.xWrite = faulty_write;
            tables[i].faulty.xSync = faulty_sync;
        }
        file->pMethods = &tables[i].faulty;
        n_opened += (flags & SQLITE_OPEN_MAIN_DB) != 0;
    }
    return code;
}

static void vfs_install(void)
{
    static sqlite3_vfs vfs;

    vfs = *sqlite3_vfs_find(NULL);
    vfs.zName = "faulty";
    real_open = vfs.xOpen;
    vfs.xOpen = faulty_open;
    atomic_store(&fail_at, INT32_MAX);
    cr_assert_eq(sqlite3_vfs_register(&vfs, 1), SQLITE_OK);
}

/* The result of the appends, remembered by id. */
struct told { char id[ID_BYTES]; int result; bool done; };

static void tell(void *arg, int r)
{
    struct told *t = arg;

    t->result = r;
    t->done = true;
}

/* A run that fails `count` calls from number `at` on: how many records were called done, or -1 when no call was hit. */
static int faulty_run(int at, int count)
{
    struct told told[6] = {0};
    struct fixture f;
    char sql[128], text[512];
    int n_ok = 0;
    bool hit;

    fixture_init(&f);
    n_good = 0;
    atomic_store(&n_calls, 0);
    atomic_store(&fail_until, at + count);
    atomic_store(&fail_at, at);
    for (size_t i = 0; i < ARRAY_SIZE(told); i++) {
        struct store_record r;

        id_new(told[i].id, clock_wall_usec());
        r = request_record(told[i].id);
        cr_assert_eq(store_append(f.store, &r, tell, &told[i]), 0);
        WAIT_FOR(&f, told[i].done);
    }
    hit = atomic_load(&n_calls) > at;
    atomic_store(&fail_at, INT32_MAX);
    WAIT_FOR(&f, store_healthy(f.store));
    cr_assert_eq(append_one(&f, 10), 0);
    fixture_close(&f);
    fixture_open(&f);

    cr_assert_str_eq(sql_text(f.path, "PRAGMA integrity_check", text), "ok");
    cr_assert_eq(sql_int(f.path, "SELECT max(n) - count(*) FROM request"), 0);
    for (size_t i = 0; i < ARRAY_SIZE(told); i++) {
        snprintf(sql, sizeof(sql), "SELECT count(*) FROM request WHERE id = '%.26s'", told[i].id);
        if (told[i].result == 0)
            cr_assert_eq(sql_int(f.path, sql), 1, "fault at %d x %d: record %zu was called done and is gone",
                         at, count, i);
        n_ok += told[i].result == 0;
    }
    fixture_done(&f);
    return hit ? n_ok : -1;
}

Test(fault, every_write_and_sync, .timeout = 110)
{
    int n_ok, at, n_failed = 0;

    vfs_install();
    for (at = 0; (n_ok = faulty_run(at, 1)) >= 0; at++)
        n_failed += n_ok < 6;
    cr_assert_gt(at, 20, "the faults were not reached");
    cr_assert_gt(n_failed, at / 2, "faults passed unseen");
    fprintf(stderr, "fault: %d writes and fsyncs made to fail, %d runs lost an append and said so\n", at, n_failed);
    for (at = 0; at < 12; at += 3)
        faulty_run(at, 1000);
}

/* After an fsync that failed, the connection is not used again: a new one is opened. */
Test(fault, failed_sync_reopens)
{
    struct fixture f;
    int opened;

    vfs_install();
    fixture_init(&f);
    cr_assert_eq(append_one(&f, 10), 0);
    opened = n_opened;
    atomic_store(&fail_until, INT32_MAX);
    atomic_store(&fail_at, 0);
    cr_assert_eq(append_one(&f, 10), STORE_E_FAILED);
    atomic_store(&fail_at, INT32_MAX);
    WAIT_FOR(&f, store_healthy(f.store));
    cr_assert_gt(n_opened, opened);
    cr_assert_eq(append_one(&f, 10), 0);
    fixture_done(&f);
}

/* kill -9 cannot tell a commit that reached the disk from one that reached the page cache: this counts. The control,
 * synchronous=NORMAL, calls done without a sync. */
Test(fault, done_comes_after_a_sync)
{
    struct store_config control = {.max_requests = 8, .sync_normal = true};
    struct fixture f;
    struct err err;
    int before;

    vfs_install();
    fixture_init(&f);
    for (int i = 0; i < 10; i++) {
        before = n_syncs;
        cr_assert_eq(append_one(&f, 10), 0);
        cr_assert_gt(n_syncs, before, "done without a sync");
    }
    fixture_close(&f);

    control.path = f.path;
    cr_assert_eq(store_open(&f.store, &control, &f.mailbox, &err), 0);
    cr_assert_eq(append_one(&f, 10), 0);
    before = n_syncs;
    cr_assert_eq(append_one(&f, 10), 0);
    cr_assert_eq(n_syncs, before, "the control syncs, so this test shows nothing");
    fixture_done(&f);
}
