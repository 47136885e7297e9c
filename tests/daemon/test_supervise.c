/* The supervisor against a spawner that is this test: what it orders, and when, as workers come, die, hang up or
 * cannot be started. Real router and store, whose writer is a thread: a plain main. */
#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "daemon/daemon.h"

static int failures;
#define CHECK(c) do { if (!(c)) { printf("FAILED line %d: %s\n", __LINE__, #c); failures++; } } while (0)

enum { ORDER_START, ORDER_KILL };
struct order { uint32_t op, role; };

static struct daemon d;
static int spawner;                              /* our end */
static uint64_t took_usec;

/* Run the loop until an order comes, at most `msec`. */
static bool ordered(uint32_t op, uint32_t role, unsigned msec)
{
    uint64_t began = clock_usec();
    struct order o;

    do {
        struct timeval slice = {.tv_usec = 5000};

        event_base_loopexit(d.base, &slice);
        event_base_dispatch(d.base);
        if (recv(spawner, &o, sizeof(o), MSG_DONTWAIT) == sizeof(o)) {
            took_usec = clock_usec() - began;
            return o.op == op && o.role == role;
        }
    } while (clock_usec() - began < msec * USEC_PER_MSEC);
    took_usec = clock_usec() - began;
    return false;
}

static bool quiet(unsigned msec)
{
    return !ordered(99, 99, msec) && took_usec >= msec * USEC_PER_MSEC;
}

static void tell(const struct spawn_event *e)
{
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct iovec iov = {(void *)e, sizeof(*e)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (e->fd >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        control.header = (struct cmsghdr) {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &e->fd, sizeof(int));
    }
    CHECK(sendmsg(spawner, &msg, 0) == sizeof(*e));
}

/* Returns our end of the worker's socket. */
static int worker_started(enum spawn_role role, pid_t pid)
{
    struct spawn_event e = {.role = role, .pid = pid};
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    e.fd = pair[0];
    tell(&e);
    close(pair[0]);
    return pair[1];
}

static void worker_died(enum spawn_role role, pid_t pid, int wait_status)
{
    tell(&(struct spawn_event) {.died = true, .role = role, .fd = -1, .pid = pid, .wait_status = wait_status});
}

static bool status_is(const char *worker, json_int_t pid, int restarts, const char *last_exit)
{
    cleanup(json_decrefp) json_t *j = supervisor_status(d.supervisor);
    const json_t *w = json_object_get(j, worker), *last = json_object_get(w, "last_exit");

    return json_integer_value(json_object_get(w, "pid")) == pid &&
           json_integer_value(json_object_get(w, "restarts")) == restarts &&
           (last_exit ? json_is_string(last) && strcmp(json_string_value(last), last_exit) == 0 : json_is_null(last));
}

static void on_worker_down(void *arg, bool engine)
{
    if (d.supervisor)
        supervisor_worker_down(d.supervisor, engine ? SPAWN_ENGINE : SPAWN_EGRESS);
}

static void test_life(void)
{
    int engine, egress;

    CHECK(ordered(ORDER_START, SPAWN_ENGINE, 1000));
    CHECK(ordered(ORDER_START, SPAWN_EGRESS, 1000));
    CHECK(status_is("engine", 0, 0, NULL));
    engine = worker_started(SPAWN_ENGINE, 100);
    egress = worker_started(SPAWN_EGRESS, 200);
    CHECK(quiet(50));
    CHECK(status_is("engine", 100, 0, NULL) && status_is("egress", 200, 0, NULL));
    CHECK(supervisor_fresh(d.supervisor));

    /* Somebody else's death is not this worker's. */
    worker_died(SPAWN_ENGINE, 99, SIGKILL);
    CHECK(quiet(50));

    /* At once, then after 0.5 s, then after 1 s. */
    close(engine);
    worker_died(SPAWN_ENGINE, 100, SIGKILL);
    CHECK(ordered(ORDER_START, SPAWN_ENGINE, 300));
    CHECK(took_usec < 200 * USEC_PER_MSEC);
    CHECK(status_is("engine", 0, 1, "signal 9 (KILL)"));
    close(worker_started(SPAWN_ENGINE, 101));
    worker_died(SPAWN_ENGINE, 101, 2 << 8);
    CHECK(ordered(ORDER_START, SPAWN_ENGINE, 2000));
    CHECK(took_usec >= 490 * USEC_PER_MSEC);
    CHECK(status_is("engine", 0, 2, "status 2"));
    /* It could not be forked. */
    worker_died(SPAWN_ENGINE, 0, 127 << 8);
    CHECK(ordered(ORDER_START, SPAWN_ENGINE, 3000));
    CHECK(took_usec >= 990 * USEC_PER_MSEC);
    CHECK(supervisor_restarts(d.supervisor, SPAWN_ENGINE) == 3 && supervisor_restarts(d.supervisor, SPAWN_EGRESS) == 0);
    CHECK(supervisor_fresh(d.supervisor));

    /* A worker that hangs up and does not end is ended, once it had its second. */
    close(egress);
    CHECK(ordered(ORDER_KILL, SPAWN_EGRESS, 4000));
    CHECK(took_usec >= USEC_PER_SEC);
    worker_died(SPAWN_EGRESS, 200, SIGKILL);
    while (!ordered(ORDER_START, SPAWN_EGRESS, 3000))
        if (took_usec >= 3 * USEC_PER_SEC) {
            CHECK(!"egress was not started again");
            break;
        }

    /* Without a spawner there is nothing to go on with. */
    close(spawner);
    alarm(10);
    CHECK(event_base_dispatch(d.base) == 0 && event_base_got_break(d.base));
}

int main(void)
{
    char directory[] = "/tmp/tern-supervise-XXXXXX", path[64], command[64];
    struct router_hooks hooks = {.worker_down = on_worker_down};
    struct store_config sc = {.path = path, .max_requests = 4, .busy_timeout_msec = 1000};
    struct router_config *rc = router_config_new();
    struct err err = {""};
    int pair[2];

    signal(SIGPIPE, SIG_IGN);
    if (!mkdtemp(directory))
        return 1;
    snprintf(path, sizeof(path), "%s/tern.db", directory);
    d.base = event_base_new();
    CHECK(mailbox_init(&d.mailbox) == 0);
    CHECK(store_open(&d.store, &sc, &d.mailbox, &err) == 0);
    CHECK(router_new(&d.router, d.base, d.store, rc, &hooks) == 0);
    router_config_unref(rc);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    spawner = pair[1];
    CHECK(supervisor_new(&d.supervisor, &d, pair[0]) == 0);
    if (failures == 0)
        test_life();
    supervisor_free(TAKE(d.supervisor));
    router_free(d.router);
    store_close(d.store);
    mailbox_done(&d.mailbox);
    event_base_free(d.base);
    close(pair[0]);
    snprintf(command, sizeof(command), "rm -r %s", directory);
    CHECK(system(command) == 0);
    puts(failures ? "failed" : "ok");
    return failures ? 1 : 0;
}
