/* The store's threads against a loop that appends, asks, meets a fault and closes in the middle of it all. Counts
 * what comes back; ThreadSanitizer watches the rest. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include "base/clock.h"
#include "store/store.h"

#define N_RECORDS 3000
#define CHECK(cond) do {                                                             \
    if (!(cond)) {                                                                   \
        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                   \
        exit(1);                                                                     \
    }                                                                                \
} while (0)

struct loop {
    struct mailbox mailbox;
    struct store *store;
    unsigned n_ok, n_failed, n_answers;
};

static void on_done(void *arg, int r)
{
    struct loop *l = arg;

    if (r == 0)
        l->n_ok++;
    else
        l->n_failed++;
}

static void on_answer(void *arg, json_t *result, const struct err *err)
{
    struct loop *l = arg;

    CHECK(result || err->msg[0]);
    l->n_answers++;
    json_decref(result);
}

static void run_once(struct loop *l)
{
    struct pollfd p = {.fd = l->mailbox.fd, .events = POLLIN};

    if (poll(&p, 1, 10) > 0)
        mailbox_run(&l->mailbox);
}

static void append(struct loop *l, unsigned n)
{
    while (n--) {
        struct store_record r = {.kind = STORE_REQUEST, .time_usec = clock_wall_usec(),
                                 .request = {.label = "public", .key = "k"}};

        id_new(r.request_id, r.time_usec);
        CHECK(store_append(l->store, &r, on_done, l) == 0);
    }
}

static void ask(struct loop *l, enum store_ask ask, const char *label)
{
    struct store_query q = {.ask = ask, .id = "x", .label = label, .limit = 10};

    CHECK(store_query(l->store, &q, on_answer, l) == 0);
}

static void wait_for(struct loop *l, const unsigned *count, unsigned want)
{
    uint64_t give_up = clock_usec() + 60 * USEC_PER_SEC;

    while (*count < want) {
        CHECK(clock_usec() < give_up);
        run_once(l);
    }
    CHECK(*count == want);
}

int main(void)
{
    char dir[] = "/tmp/tern-store-XXXXXX", path[64], name[80];
    static const char *const names[] = {"", "-wal", "-shm", ".lock"};
    struct store_config c = {.path = path, .max_requests = 100};
    struct loop l = {0};
    struct err err = {0};
    struct rlimit before, limit;

    signal(SIGXFSZ, SIG_IGN);
    CHECK(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/audit.db", dir);
    CHECK(mailbox_init(&l.mailbox) == 0);
    CHECK(store_open(&l.store, &c, &l.mailbox, &err) == 0);

    for (unsigned i = 0; i < N_RECORDS / 10; i++) {
        append(&l, 10);
        if (i % 10 == 0) {
            ask(&l, i % 20 ? STORE_LOG : STORE_STATS, i % 30 ? NULL : "public");
            run_once(&l);
        }
        CHECK(store_healthy(l.store));
        CHECK(store_writer_beat_usec(l.store) <= clock_usec());
    }
    wait_for(&l, &l.n_ok, N_RECORDS);
    wait_for(&l, &l.n_answers, N_RECORDS / 100);

    /* A fault, seen from the loop, and recovery. */
    getrlimit(RLIMIT_FSIZE, &before);
    limit = (struct rlimit) {.rlim_cur = 4096, .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    append(&l, 50);
    wait_for(&l, &l.n_failed, 50);
    CHECK(store_reserve(l.store) == STORE_E_FAILED && store_fault(l.store));
    setrlimit(RLIMIT_FSIZE, &before);
    while (!store_healthy(l.store))
        run_once(&l);
    append(&l, 50);
    wait_for(&l, &l.n_ok, N_RECORDS + 50);

    /* Closed while both threads have work and mail is waiting. */
    append(&l, 500);
    ask(&l, STORE_STATS, NULL);
    run_once(&l);
    append(&l, 500);
    store_close(l.store);
    mailbox_run(&l.mailbox);
    mailbox_done(&l.mailbox);

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(name, sizeof(name), "%s%s", path, names[i]);
        unlink(name);
    }
    CHECK(rmdir(dir) == 0);
    printf("store: %u done, %u failed, %u answers\n", l.n_ok, l.n_failed, l.n_answers);
    return 0;
}
