/* Opening and closing, the lock on the database, and the loop's side of appending. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include "base/clock.h"
#include "store/internal.h"

/* What may wait for a stalled disk, per place. A request appends fewer records; those whose client left free their
 * place while their records still wait, and this bounds them. */
#define RECORDS_PER_PLACE 32

/* A second writer is refused. flock() goes away with the process, however it dies; the pid inside is for people. */
static int lock_database(struct store *s, struct err *err)
{
    cleanup(freep) char *path = NULL;
    cleanup(closep) int fd = -1;
    char pid[32] = "";

    if (asprintf(&path, "%s.lock", s->path) < 0)
        return -ENOMEM;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s; its directory must exist and be writable for this user", path,
                       strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int e = errno;
        ssize_t n = pread(fd, pid, sizeof(pid) - 1, 0);

        pid[n > 0 ? strspn(pid, "0123456789") : 0] = '\0';
        if (e != EWOULDBLOCK)
            return err_set(err, -e, "%s: %s", path, strerror(e));
        return err_set(err, -EBUSY, "%s: in use by process %s; stop it, or set another [store] path", s->path,
                       *pid ? pid : "(unknown)");
    }
    if (ftruncate(fd, 0) == 0)
        dprintf(fd, "%ld\n", (long)getpid());

    s->lock_fd = fd;
    fd = -1;
    return 0;
}

/* Made here rather than by SQLite, so that nobody else may read it. The log and its index inherit the mode. */
static int create_file(const char *path, struct err *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0)
        return err_set(err, -errno, "%s: %s; make the file and its directory writable for this user", path,
                       strerror(errno));
    close(fd);
    return 0;
}

static void store_freep(struct store **s)
{
    store_close(*s);
}

/* The threads take no signals: those are the loop's. */
static int start_threads(struct store *s, struct err *err)
{
    sigset_t all, before;
    int e;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    e = pthread_create(&s->writer_thread, NULL, writer_main, s);
    s->writer_started = e == 0;
    if (e == 0) {
        e = pthread_create(&s->reader_thread, NULL, reader_main, s);
        s->reader_started = e == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return e ? err_set(err, -e, "cannot start a thread: %s", strerror(e)) : 0;
}

int store_open(struct store **ret, const struct store_config *c, struct mailbox *mailbox, struct err *err)
{
    cleanup(store_freep) struct store *s = NULL;
    int r;

    s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->lock_fd = -1;
    queue_init(&s->records);
    queue_init(&s->queries);
    s->c = *c;
    s->c.path = s->path = strdup(c->path);
    s->outbox = outbox_new(mailbox);
    if (!s->path || !s->outbox)
        return -ENOMEM;

    r = lock_database(s, err);
    if (r < 0)
        return r;
    r = create_file(s->path, err);
    if (r < 0)
        return r;
    r = writer_open(s, DB_CREATE, err);
    if (r < 0)
        return r;
    atomic_store(&s->beat_usec, clock_usec());
    r = start_threads(s, err);
    if (r < 0)
        return r;

    *ret = TAKE(s);
    return 0;
}


void store_close(struct store *s)
{
    if (!s)
        return;
    atomic_store(&s->stopping, true);
    queue_push(&s->records, &s->held, false);
    queue_stop(&s->records);
    queue_stop(&s->queries);
    if (s->reader_started)
        pthread_join(s->reader_thread, NULL);
    if (s->writer_started)
        pthread_join(s->writer_thread, NULL);
    queue_done(&s->records);
    queue_done(&s->queries);
    outbox_free(s->outbox);
    writer_close(s);
    closep(&s->lock_fd);
    free(s->path);
    free(s);
}

int store_reserve(struct store *s)
{
    if (!store_healthy(s))
        return STORE_E_FAILED;
    if (s->in_flight >= s->c.max_requests ||
        queue_length(&s->records) / RECORDS_PER_PLACE >= s->c.max_requests)
        return STORE_E_FULL;
    s->in_flight++;
    return 0;
}

void store_release(struct store *s)
{
    s->in_flight--;
}

unsigned store_in_flight(const struct store *s)
{
    return s->in_flight;
}

int store_append(struct store *s, const struct store_record *rec, store_done_fn *done, void *arg)
{
    struct entry *e = entry_new(rec, done, arg);

    if (!e)
        return -ENOMEM;
    job_list_add(&s->held, &e->job);
    if (!s->holds)
        queue_push(&s->records, &s->held, false);
    return 0;
}

void store_hold(struct store *s)
{
    s->holds++;
}

void store_flush(struct store *s, bool waited_for)
{
    s->urgent |= waited_for;
    if (--s->holds > 0)
        return;
    queue_push(&s->records, &s->held, !s->urgent);
    s->urgent = false;
}

bool store_healthy(const struct store *s)
{
    return atomic_load(&s->fault) == SQLITE_OK;
}

const char *store_fault(const struct store *s)
{
    int code = atomic_load(&s->fault);

    return code == SQLITE_OK ? NULL : sqlite3_errstr(code);
}

uint64_t store_writer_beat_usec(const struct store *s)
{
    return atomic_load(&s->beat_usec);
}
