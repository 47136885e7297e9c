/* The process that starts workers: one poll() loop over the order socket and a signalfd for SIGCHLD. Forked from the
 * front before it has threads, configuration or requests, so there is nothing in it to steal; a front that was taken
 * over can order no more than another start or the end of the same two programs. Orders and answers are single
 * SEQPACKET messages; a worker's socket comes along as SCM_RIGHTS. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "daemon/daemon.h"

#define MAX_CHILDREN 8
#define GRACE_USEC (300 * USEC_PER_MSEC)         /* for workers to see their socket close and end by themselves */

enum spawn_op { OP_START, OP_KILL };
struct order { uint32_t op, role; };

struct spawner {
    int fd, signal_fd;
    int argc;
    char **argv;
    struct { pid_t pid; enum spawn_role role; } children[MAX_CHILDREN];
    size_t n_children;
};

static const char *const role_names[] = {[SPAWN_ENGINE] = "engine", [SPAWN_EGRESS] = "egress"};

/* ---- Messages -------------------------------------------------------------------------------------------------- */

union control { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; };

static void tell(const struct spawner *s, const struct spawn_event *e)
{
    struct iovec iov = {(void *)e, sizeof(*e)};
    union control control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (e->fd >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &e->fd, sizeof(int));
    }
    while (sendmsg(s->fd, &msg, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

int spawner_read(int fd, struct spawn_event *ret)
{
    struct spawn_event e;
    struct iovec iov = {&e, sizeof(e)};
    union control control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c;
    ssize_t n;

    n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (n == 0)
        return -EPIPE;
    e.fd = -1;
    c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&e.fd, CMSG_DATA(c), sizeof(int));
    if ((size_t)n != sizeof(e) || (unsigned)e.role > SPAWN_EGRESS || (!e.died && e.fd < 0)) {
        closep(&e.fd);
        return -EPROTO;
    }
    *ret = e;
    return 1;
}

static int send_order(int fd, enum spawn_op op, enum spawn_role role)
{
    struct order o = {op, role};
    ssize_t n = send(fd, &o, sizeof(o), MSG_DONTWAIT | MSG_NOSIGNAL);

    return n == (ssize_t)sizeof(o) ? 0 : n < 0 ? -errno : -EPROTO;
}

int spawner_order(int fd, enum spawn_role role)
{
    return send_order(fd, OP_START, role);
}

int spawner_kill(int fd, enum spawn_role role)
{
    return send_order(fd, OP_KILL, role);
}

/* ---- Workers --------------------------------------------------------------------------------------------------- */

/* In the child. The worker's options go first, so that they hold whatever follows. */
static void run_worker(const struct spawner *s, pid_t parent, enum spawn_role role, int fd)
{
    char **argv = calloc((size_t)s->argc + 5, sizeof(*argv)), number[16];
    sigset_t none;

    /* Should the spawner be killed, its workers are too. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || !argv)
        _exit(127);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    fcntl(fd, F_SETFD, 0);
    if (role == SPAWN_ENGINE)
        unsetenv("CREDENTIALS_DIRECTORY");
    snprintf(number, sizeof(number), "%d", fd);
    argv[0] = s->argv[0];
    argv[1] = "--role";
    argv[2] = (char *)role_names[role];
    argv[3] = "--fd";
    argv[4] = number;
    for (int i = 1; i < s->argc; i++)
        argv[4 + i] = s->argv[i];
    execv("/proc/self/exe", argv);
    _exit(127);
}

static void start_worker(struct spawner *s, enum spawn_role role)
{
    struct spawn_event failed = {.died = true, .role = role, .fd = -1, .wait_status = 127 << 8};
    struct spawn_event e = {.role = role};
    pid_t self = getpid(), pid = -1;
    int pair[2];

    if (s->n_children == MAX_CHILDREN || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        tell(s, &failed);
        return;
    }
    pid = fork();
    if (pid == 0)
        run_worker(s, self, role, pair[1]);
    close(pair[1]);
    if (pid < 0) {
        tell(s, &failed);
    } else {
        s->children[s->n_children].pid = pid;
        s->children[s->n_children++].role = role;
        e.pid = pid;
        e.fd = pair[0];
        tell(s, &e);
    }
    close(pair[0]);
}

/* The one started last. */
static void kill_worker(const struct spawner *s, enum spawn_role role)
{
    for (size_t i = s->n_children; i-- > 0;)
        if (s->children[i].role == role) {
            kill(s->children[i].pid, SIGKILL);
            return;
        }
}

static void reap(struct spawner *s)
{
    struct spawn_event e = {.died = true, .fd = -1};

    while ((e.pid = waitpid(-1, &e.wait_status, WNOHANG)) > 0)
        for (size_t i = 0; i < s->n_children; i++)
            if (s->children[i].pid == e.pid) {
                e.role = s->children[i].role;
                s->n_children--;
                memmove(&s->children[i], &s->children[i + 1], (s->n_children - i) * sizeof(s->children[0]));
                tell(s, &e);
                break;
            }
}

/* The front is gone: so are its ends of the workers' sockets, which ends them; the rest is killed. */
static void end_workers(struct spawner *s)
{
    uint64_t now = clock_usec(), deadline = now + GRACE_USEC;
    struct pollfd p = {.fd = s->signal_fd, .events = POLLIN};
    struct signalfd_siginfo info;

    for (; s->n_children > 0 && now < deadline; now = clock_usec()) {
        if (poll(&p, 1, (int)((deadline - now) / USEC_PER_MSEC) + 1) > 0 && read(s->signal_fd, &info, sizeof(info)) > 0)
            reap(s);
    }
    for (size_t i = 0; i < s->n_children; i++)
        kill(s->children[i].pid, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
}

static void run(struct spawner *s)
{
    struct pollfd p[2] = {{.fd = s->fd, .events = POLLIN}, {.fd = s->signal_fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    struct order o;
    ssize_t n;

    for (;;) {
        if (poll(p, 2, -1) < 0)
            continue;
        if ((p[1].revents & POLLIN) && read(s->signal_fd, &info, sizeof(info)) > 0)
            reap(s);
        if (!p[0].revents)
            continue;
        n = recv(s->fd, &o, sizeof(o), MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return;
        if (n != (ssize_t)sizeof(o) || o.role > SPAWN_EGRESS)
            continue;
        if (o.op == OP_START)
            start_worker(s, (enum spawn_role)o.role);
        else if (o.op == OP_KILL)
            kill_worker(s, (enum spawn_role)o.role);
    }
}

/* In the child: keep the standard streams and the socket, forget everything else. */
static void spawner_main(int fd, int argc, char **argv)
{
    static const char *const ours_only[] = {
        "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    };
    struct spawner s = {.fd = 3, .argc = argc, .argv = argv};
    sigset_t child;

    if (fd != 3 && dup3(fd, 3, O_CLOEXEC) < 0)
        _exit(1);
    if (close_range(4, ~0u, 0) < 0)
        _exit(1);
    for (size_t i = 0; i < ARRAY_SIZE(ours_only); i++)
        unsetenv(ours_only[i]);
    /* A terminal's interrupt goes to the whole group, but the front decides when to stop. Ignoring is inherited by
     * workers. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_SETMASK, &child, NULL);
    prctl(PR_SET_NAME, "tern-spawner");
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    s.signal_fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s.signal_fd < 0)
        _exit(1);
    run(&s);
    end_workers(&s);
    _exit(0);
}

int spawner_start(int *ret_fd, pid_t *ret_pid, int argc, char **argv)
{
    int pair[2], r;
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    pid = fork();
    if (pid == 0)
        spawner_main(pair[1], argc, argv);
    r = pid < 0 ? -errno : 0;
    close(pair[1]);
    if (r < 0) {
        close(pair[0]);
        return r;
    }
    *ret_fd = pair[0];
    *ret_pid = pid;
    return 0;
}
