/* load: a closed loop of HTTP clients in one thread, and the times of their answers. In C because the machine that is
 * measured has two cores, and an interpreter would be what is measured.
 *
 *     load [-c CONNECTIONS] [-n REQUESTS] [-w WARM-UP REQUESTS] [-H 'Name: value']… [--idle N] [--slow N] [--pause MSEC]
 *          PORT METHOD PATH [BODY]
 *     load [-n REQUESTS] engine
 *
 * Every connection to 127.0.0.1:PORT is kept alive and has one request under way: the next is sent when the answer is
 * whole (Content-Length, or chunks up to the last). --pause waits between an answer and the next request. --idle opens
 * connections that never send a byte, --slow ones that send a head a byte each half second; both are opened again when
 * the server closes them. "engine" asks the stand-in engine over a socketpair instead, which is what the daemon's own
 * time over it is held against. Prints one line of JSON; times are in microseconds from the first byte sent to the last
 * byte received. Any answer but a 200 counts as an error. */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/frame.h"
#include "engine/engine.h"

#define IN_MAX (1u << 20)
#define SLOW_USEC (500 * USEC_PER_MSEC)

enum kind { ASKS, IDLE, SLOW };

struct client {
    enum kind kind;
    int fd;
    struct buf in;
    size_t sent;               /* of the request */
    bool waiting;              /* between two requests, or to be opened again */
    uint64_t began_usec, due_usec;
};

static int port;
static unsigned n_clients = 1, n_idle, n_slow;
static uint64_t n_requests = 1000, n_warm, n_started, n_done, n_errors, n_reopened, n_refused, pause_usec;
static uint32_t *times;        /* of the requests after the warm-up */
static size_t n_times;
static uint64_t measured_from;
static struct buf request = {.max = 64u << 20};
static int epoll_fd;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- Answers ---- */

static const char *header_find(const char *head, size_t len, const char *name)
{
    size_t n = strlen(name);

    for (const char *p = memchr(head, '\n', len); p && p + n < head + len; p = memchr(p, '\n', (size_t)(head + len - p)))
        if (strncasecmp(++p, name, n) == 0 && p[n] == ':')
            return p + n + 1 + strspn(p + n + 1, " ");
    return NULL;
}

/* Bytes of the whole answer at the front of `in`, 0: not whole yet. */
static size_t answer_len(const struct buf *in)
{
    const char *text = (const char *)in->data, *end = in->len ? memmem(text, in->len, "\r\n\r\n", 4) : NULL, *v;
    size_t head = end ? (size_t)(end + 4 - text) : 0, n;

    if (!head)
        return 0;
    v = header_find(text, head, "Content-Length");
    if (v) {
        n = head + strtoul(v, NULL, 10);
        return in->len >= n ? n : 0;
    }
    /* Only the end of the last chunk can come last, since one request is under way at a time. */
    return in->len >= head + 5 && memcmp(text + in->len - 5, "0\r\n\r\n", 5) == 0 ? in->len : 0;
}

/* ---- Clients ---- */

static void client_watch(struct client *c, uint32_t events, int op)
{
    struct epoll_event e = {.events = events, .data.ptr = c};

    if (epoll_ctl(epoll_fd, op, c->fd, &e) < 0)
        die("epoll_ctl");
}

static void client_open(struct client *c)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int on = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    c->sent = 0;
    c->waiting = c->kind == SLOW;
    c->due_usec = clock_usec() + SLOW_USEC;
    client_watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

static void client_close(struct client *c)
{
    close(c->fd);
    buf_clear(&c->in);
    n_reopened++;
}

static void client_ask(struct client *c)
{
    if (n_started == n_warm)
        measured_from = clock_usec();
    if (n_started == n_warm + n_requests)
        return;
    n_started++;
    c->waiting = false;
    c->began_usec = clock_usec();
    if (send(c->fd, request.data, request.len, MSG_NOSIGNAL) != (ssize_t)request.len)
        die("send");
}

static void client_answered(struct client *c, size_t len)
{
    uint64_t took = clock_usec() - c->began_usec;

    if (c->in.len < 12 || memcmp(c->in.data + 9, "200", 3) != 0)
        n_errors++;
    if (c->in.len >= 12 && c->in.data[9] == '4')
        n_refused++;
    if (n_done++ >= n_warm && n_times < n_requests)
        times[n_times++] = (uint32_t)MIN(took, (uint64_t)UINT32_MAX);
    buf_consume(&c->in, len);
    c->due_usec = clock_usec() + pause_usec;
    c->waiting = pause_usec;
    if (!pause_usec)
        client_ask(c);
}

static void client_read(struct client *c)
{
    char chunk[65536];
    ssize_t n = recv(c->fd, chunk, sizeof(chunk), MSG_DONTWAIT);
    size_t len;

    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        if (c->kind == ASKS) {
            fprintf(stderr, "load: the server closed a connection\n");
            exit(1);
        }
        client_close(c);
        client_open(c);
        return;
    }
    if (c->kind != ASKS)
        return;
    if (buf_append(&c->in, chunk, (size_t)n) < 0)
        die("answer");
    len = answer_len(&c->in);
    if (len)
        client_answered(c, len);
}

static void client_due(struct client *c)
{
    static const char slow[] = "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    if (c->kind == ASKS) {
        client_ask(c);
        return;
    }
    if (send(c->fd, slow + c->sent % (sizeof(slow) - 1), 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1)
        c->sent++;
    c->due_usec += SLOW_USEC;
}

/* ---- The engine, directly ---- */

static void engine_direct(void)
{
    static const char order[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}";
    struct engine_config config = {.sessions = 1};
    struct frame_reader in;
    struct frame f;
    int fds[2];
    pid_t child;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 || (child = fork()) < 0)
        die("engine");
    if (child == 0) {
        close(fds[0]);
        _exit(engine_worker_main(fds[1], &config));
    }
    close(fds[1]);
    frame_reader_init(&in);
    measured_from = clock_usec();
    for (uint64_t id = 1; id <= n_requests; id++) {
        uint64_t began = clock_usec();
        bool over = false;

        if (frame_send(fds[0], ENGINE_START, id, order, sizeof(order) - 1) < 0)
            die("engine");
        while (!over) {
            while (!over && frame_reader_next(&in, &f) == 1)
                over = f.type == ENGINE_END;
            if (!over && frame_reader_fill(&in, fds[0]) <= 0)
                die("engine");
        }
        times[n_times++] = (uint32_t)(clock_usec() - began);
    }
    n_done = n_requests;
    close(fds[0]);
    waitpid(child, NULL, 0);
}

/* ---- The whole ---- */

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static unsigned at(double share)
{
    return n_times ? times[MIN((size_t)(share * (double)n_times), n_times - 1)] : 0;
}

static void print_result(void)
{
    double sec = (double)(clock_usec() - measured_from) / USEC_PER_SEC;
    struct rusage self;

    getrusage(RUSAGE_SELF, &self);
    qsort(times, n_times, sizeof(*times), by_value);
    printf("{\"requests\":%zu,\"errors\":%llu,\"refused\":%llu,\"reopened\":%llu,\"seconds\":%.3f,\"per_sec\":%.0f,"
           "\"p50\":%u,\"p90\":%u,\"p99\":%u,\"p999\":%u,\"max\":%u,\"cpu_seconds\":%.3f}\n",
           n_times, (unsigned long long)n_errors, (unsigned long long)n_refused, (unsigned long long)n_reopened, sec,
           (double)n_times / sec, at(0.5), at(0.9), at(0.99), at(0.999), at(1),
           (double)(self.ru_utime.tv_sec + self.ru_stime.tv_sec) +
           (double)(self.ru_utime.tv_usec + self.ru_stime.tv_usec) / 1e6);
}

static void request_make(char **argv, int argc, const char *headers)
{
    const char *body = argc > 3 ? argv[3] : "";

    buf_printf(&request, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s", argv[1], argv[2], port, headers);
    if (argc > 3)
        buf_printf(&request, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    buf_printf(&request, "\r\n%s", body);
}

static void run(void)
{
    size_t n = (size_t)n_clients + n_idle + n_slow;
    struct client *all = calloc(n, sizeof(*all));
    struct epoll_event events[256];
    uint64_t now, swept = 0;

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < n; i++) {
        struct client *c = &all[n - 1 - i];              /* those that only sit there first */

        c->kind = n - 1 - i < n_clients ? ASKS : n - 1 - i < n_clients + n_idle ? IDLE : SLOW;
        buf_init(&c->in, IN_MAX);
        client_open(c);
    }
    for (size_t i = 0; i < n_clients; i++)
        client_ask(&all[i]);
    while (n_done < n_warm + n_requests) {
        int ready = epoll_wait(epoll_fd, events, 256, n_slow || pause_usec ? 1 : -1);

        for (int i = 0; i < ready; i++)
            client_read(events[i].data.ptr);
        now = clock_usec();
        if ((!n_slow && !pause_usec) || now - swept < 500)
            continue;
        swept = now;
        for (size_t i = 0; i < n; i++)
            if (all[i].waiting && all[i].due_usec <= now)
                client_due(&all[i]);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"idle", required_argument, NULL, 'i'}, {"slow", required_argument, NULL, 's'},
        {"pause", required_argument, NULL, 'p'}, {0},
    };
    struct rlimit files = {65536, 65536};
    char headers[4096] = "";
    int opt;

    while ((opt = getopt_long(argc, argv, "+c:n:w:H:", options, NULL)) != -1)
        switch (opt) {
        case 'c': n_clients = (unsigned)atoi(optarg); break;
        case 'n': n_requests = (uint64_t)atoll(optarg); break;
        case 'w': n_warm = (uint64_t)atoll(optarg); break;
        case 'i': n_idle = (unsigned)atoi(optarg); break;
        case 's': n_slow = (unsigned)atoi(optarg); break;
        case 'p': pause_usec = (uint64_t)atoi(optarg) * USEC_PER_MSEC; break;
        case 'H': snprintf(headers + strlen(headers), sizeof(headers) - strlen(headers), "%s\r\n", optarg); break;
        default: return 2;
        }
    argc -= optind;
    argv += optind;
    signal(SIGPIPE, SIG_IGN);
    times = calloc(n_requests + 1, sizeof(*times));
    if (argc == 1 && strcmp(argv[0], "engine") == 0) {
        engine_direct();
    } else if (argc >= 3) {
        if (setrlimit(RLIMIT_NOFILE, &files) < 0 && getrlimit(RLIMIT_NOFILE, &files) == 0) {
            files.rlim_cur = files.rlim_max;
            setrlimit(RLIMIT_NOFILE, &files);
        }
        port = atoi(argv[0]);
        request_make(argv, argc, headers);
        run();
    } else {
        fprintf(stderr, "usage: load [OPTION]... PORT METHOD PATH [BODY]; see the top of load.c\n");
        return 2;
    }
    print_result();
    return 0;
}
