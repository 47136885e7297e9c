/* Keeps one engine and one egress alive: orders them from the spawner, hands their sockets to the router, and looks
 * once a second whether they still answer. A worker is `alive` from the arrival of its socket until the spawner tells
 * its death; in between it is ordered already or waits for its timer. */
#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "base/log.h"
#include "daemon/daemon.h"

#define STALE_USEC (30 * USEC_PER_SEC)           /* since the last beat */
#define LOADING_USEC (300 * USEC_PER_SEC)        /* before the first: a large model comes off a slow disk */
#define KILL_USEC (10 * USEC_PER_SEC)            /* for a worker that was to be killed to be replaced */
#define CLOSED_USEC USEC_PER_SEC                 /* for a worker whose socket closed to end */
#define DELAY_USEC (USEC_PER_SEC / 2)
#define MAX_DELAY_USEC (30 * USEC_PER_SEC)
#define LONG_LIFE_USEC (60 * USEC_PER_SEC)

struct worker {
    struct supervisor *s;
    enum spawn_role role;
    bool alive;
    pid_t pid;
    uint64_t started_usec, closed_usec;          /* closed: 0 while its socket is open */
    uint64_t delay_usec;                         /* before the next restart; 0: at once */
    unsigned restarts;
    char last_exit[48];
    struct event *timer;
};

struct supervisor {
    struct daemon *d;
    int fd;
    struct event *readable, *tick;
    struct worker workers[2];                    /* by enum spawn_role */
};

static const char *const names[] = {[SPAWN_ENGINE] = "engine", [SPAWN_EGRESS] = "egress"};

static void start(struct worker *w)
{
    int r = spawner_order(w->s->fd, w->role);

    if (r == 0)
        return;
    log_error("%s: cannot be started: %s", names[w->role], strerror(-r));
    evtimer_add(w->timer, &(struct timeval) {.tv_sec = 1});
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    start(arg);
}

static void started(struct worker *w, const struct spawn_event *e)
{
    struct router *router = w->s->d->router;
    int r;

    w->alive = true;
    w->pid = e->pid;
    w->started_usec = clock_usec();
    r = w->role == SPAWN_ENGINE ? router_attach_engine(router, e->fd) : router_attach_egress(router, e->fd);
    w->closed_usec = 0;
    if (r < 0) {
        log_error("%s: %s", names[w->role], strerror(-r));
        spawner_kill(w->s->fd, w->role);
        return;
    }
    log_info("%s started, pid %d", names[w->role], (int)w->pid);
}

static void died(struct worker *w, const struct spawn_event *e)
{
    int status = e->wait_status;

    /* 0: it could not even be forked. */
    if (e->pid && e->pid != w->pid)
        return;
    if (WIFSIGNALED(status))
        snprintf(w->last_exit, sizeof(w->last_exit), "signal %d (%s)", WTERMSIG(status),
                 sigabbrev_np(WTERMSIG(status)));
    else
        snprintf(w->last_exit, sizeof(w->last_exit), "status %d", WEXITSTATUS(status));
    if (w->alive && clock_usec() - w->started_usec >= LONG_LIFE_USEC)
        w->delay_usec = 0;
    log_warning("%s ended with %s; starting another in %.1f s", names[w->role], w->last_exit,
                (double)w->delay_usec / 1e6);
    w->alive = false;
    w->restarts++;
    event_add(w->timer, &(struct timeval) {(time_t)(w->delay_usec / USEC_PER_SEC),
                                           (suseconds_t)(w->delay_usec % USEC_PER_SEC)});
    w->delay_usec = w->delay_usec ? MIN(2 * w->delay_usec, MAX_DELAY_USEC) : DELAY_USEC;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct supervisor *s = arg;
    struct spawn_event e;
    int r;

    while ((r = spawner_read(s->fd, &e)) > 0) {
        if (e.died)
            died(&s->workers[e.role], &e);
        else
            started(&s->workers[e.role], &e);
    }
    if (r == 0)
        return;
    /* The workers die with it, and the front may start nothing itself. */
    log_error("the spawner is gone (%s): stopping", strerror(-r));
    event_base_loopbreak(s->d->base);
}

/* Since when has a live worker said nothing, and how long may it? */
static uint64_t silence(const struct worker *w, uint64_t now, uint64_t *ret_limit)
{
    const struct router *r = w->s->d->router;
    bool engine = w->role == SPAWN_ENGINE;
    bool ready = engine ? router_engine_ready(r) : router_egress_ready(r);
    uint64_t beat = engine ? router_engine_beat_usec(r) : router_egress_beat_usec(r);

    *ret_limit = ready ? STALE_USEC : LOADING_USEC;
    return now - MIN(now, MAX(beat, w->started_usec));
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct supervisor *s = arg;
    uint64_t now = clock_usec(), limit;
    struct worker *w;

    for (w = s->workers; w < s->workers + ARRAY_SIZE(s->workers); w++) {
        if (!w->alive)
            continue;
        if (silence(w, now, &limit) > limit)
            log_error("%s has not answered for %.0f s: killing it", names[w->role], (double)limit / 1e6);
        else if (!w->closed_usec || now - w->closed_usec <= CLOSED_USEC)
            continue;
        spawner_kill(s->fd, w->role);
    }
}

void supervisor_worker_down(struct supervisor *s, enum spawn_role role)
{
    s->workers[role].closed_usec = clock_usec();
}

int supervisor_new(struct supervisor **ret, struct daemon *d, int spawner_fd)
{
    struct supervisor *s = calloc(1, sizeof(*s));
    bool ok = s != NULL;

    if (!s)
        return -ENOMEM;
    s->d = d;
    s->fd = spawner_fd;
    s->readable = event_new(d->base, spawner_fd, EV_READ | EV_PERSIST, on_readable, s);
    s->tick = event_new(d->base, -1, EV_PERSIST, on_tick, s);
    for (size_t i = 0; i < ARRAY_SIZE(s->workers); i++) {
        s->workers[i].s = s;
        s->workers[i].role = (enum spawn_role)i;
        s->workers[i].timer = evtimer_new(d->base, on_timer, &s->workers[i]);
        ok = ok && s->workers[i].timer;
    }
    if (!ok || !s->readable || !s->tick || event_add(s->readable, NULL) < 0 ||
        event_add(s->tick, &(struct timeval) {.tv_sec = 1}) < 0) {
        supervisor_free(s);
        return -ENOMEM;
    }
    for (size_t i = 0; i < ARRAY_SIZE(s->workers); i++)
        start(&s->workers[i]);
    *ret = s;
    return 0;
}

static void event_drop(struct event *e)
{
    if (e)
        event_free(e);
}

void supervisor_free(struct supervisor *s)
{
    if (!s)
        return;
    event_drop(s->readable);
    event_drop(s->tick);
    for (size_t i = 0; i < ARRAY_SIZE(s->workers); i++)
        event_drop(s->workers[i].timer);
    free(s);
}

bool supervisor_fresh(const struct supervisor *s)
{
    uint64_t now = clock_usec(), limit, beat = store_writer_beat_usec(s->d->store);

    if (now - MIN(now, beat) > STALE_USEC)
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(s->workers); i++)
        if (s->workers[i].alive && silence(&s->workers[i], now, &limit) > limit + KILL_USEC)
            return false;
    return true;
}

unsigned supervisor_restarts(const struct supervisor *s, enum spawn_role role)
{
    return s->workers[role].restarts;
}

json_t *supervisor_status(const struct supervisor *s)
{
    json_t *j = json_object();

    for (size_t i = 0; i < ARRAY_SIZE(s->workers); i++) {
        const struct worker *w = &s->workers[i];

        json_object_set_new(j, names[i], json_pack("{s:o, s:i, s:o}",
            "pid", w->alive ? json_integer(w->pid) : json_null(), "restarts", (int)w->restarts,
            "last_exit", *w->last_exit ? json_string(w->last_exit) : json_null()));
    }
    return j;
}
