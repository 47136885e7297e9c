/* The parts of ternd's front and what holds them together. Everything here belongs to the loop's thread. */
#pragma once

#include <sys/socket.h>
#include "base/mailbox.h"
#include "daemon/config.h"

/* ---- main.c: the state of the running front ---- */
struct daemon {
    struct event_base *base;
    struct mailbox mailbox;
    struct config *config;
    struct store *store;
    struct router *router;
    struct http *http;
    struct supervisor *supervisor;
    uint64_t started_usec;
    bool draining;
    char status[160];              /* STATUS= line, also in /healthz */
};

/* ---- spawner.c: the process that starts workers -------------------------------------------------------------------
 * The front forbids itself to exec and to connect (sandbox.c), and a child would inherit that, so a small process forked
 * before anything else does the forking: it holds no data and knows two orders. It re-executes /proc/self/exe with
 * the original arguments plus "--role engine|egress --fd N". When the front's socket closes, it ends the workers and exits. */
int spawner_start(int *ret_fd, pid_t *ret_pid, int argc, char **argv);        /* before any thread; in the parent: the order socket */
enum spawn_role { SPAWN_ENGINE, SPAWN_EGRESS };
int spawner_order(int fd, enum spawn_role role);                              /* ask for a worker: 0 or -errno; never waits long */
int spawner_kill(int fd, enum spawn_role role);                               /* SIGKILL the current one of that role (watchdog) */
/* What the spawner says: a worker's socket, or that one died. 1: *ret filled, 0: nothing yet, -errno: spawner gone. */
struct spawn_event { bool died; enum spawn_role role; int fd; pid_t pid; int wait_status; };
int spawner_read(int fd, struct spawn_event *ret);

/* ---- supervise.c: keeps one engine and one egress alive -------------------------------------------------------------
 * Starts both, attaches their sockets to the router, restarts them when they die (at once, then 0.5 s doubling to 30 s, reset
 * after 60 s of life), and has a worker killed whose beat is older than 30 s. */
struct supervisor;
int supervisor_new(struct supervisor **ret, struct daemon *d, int spawner_fd);
void supervisor_free(struct supervisor *s);
bool supervisor_fresh(const struct supervisor *s);     /* loop, writer and workers are fresh: may the watchdog be fed? */
json_t *supervisor_status(const struct supervisor *s); /* {"engine":{"pid","restarts","last_exit"},"egress":{…}} */
void supervisor_worker_down(struct supervisor *s, enum spawn_role role);   /* its socket closed: it ends or is ended */
unsigned supervisor_restarts(const struct supervisor *s, enum spawn_role role);

/* ---- sandbox.c: what each role gives up, by seccomp (and an empty network namespace for the engine where permitted) ---- */
enum sandbox_role { SANDBOX_FRONT, SANDBOX_ENGINE, SANDBOX_EGRESS };
/* After this the front and the engine cannot connect() or make a socket that could (EPERM from the kernel); nobody can exec, ptrace,
 * mount, load modules, use io_uring or bpf. Applies to all threads made later; call before threads. 0 or negative with *err. */
int sandbox_enter(enum sandbox_role role, struct err *err);

/* ---- listen.c: sockets passed in by systemd, else our own ---- */
#define LISTEN_MAX 8
struct listener { int fd; bool is_unix; bool is_loopback; bool tls; bool ours /* not passed in */; char name[128]; };
/* Read "127.0.0.1:8420" or "[::1]:8420": numeric (port 0: the kernel picks). Its length, or -EINVAL with *err. */
int listen_address(struct sockaddr_storage *ret, const char *text, struct err *err);
bool listen_is_loopback(const struct sockaddr_storage *a);
/* A TCP socket that is not loopback is served with TLS, and refused where there is no certificate, or nobody needs a key,
 * or there is none. 0 or negative with *err. */
int listen_open(struct listener ret[LISTEN_MAX], size_t *ret_n, const struct config *c, struct err *err);
void listen_unlink(const struct listener *listeners, size_t n);       /* removes the unix sockets that are ours */

/* ---- notify.c: the service manager, or nobody ---- */
void notify_ready(struct daemon *d);
void notify_reloading(struct daemon *d);
void notify_stopping(struct daemon *d);
void notify_status(struct daemon *d, const char *fmt, ...) PRINTF_LIKE(2, 3);
uint64_t notify_watchdog_usec(void);                   /* how often to ping; 0: no watchdog */
void notify_watchdog(void);

/* ---- http.c: the server: connections, limits, Host and Origin, keys, routing of paths ---- */
struct http;
int http_new(struct http **ret, struct daemon *d, struct listener *listeners, size_t n, struct err *err);   /* takes the sockets */
void http_stop_accepting(struct http *h);
bool http_idle(const struct http *h);
void http_free(struct http *h);
void http_set_config(struct http *h, struct config *c);
