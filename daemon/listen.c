/* The sockets that clients come in by: those the service manager passed (named by FileDescriptorName=), else those
 * the configuration names. A TCP address that is not loopback is served with TLS and to holders of keys, or not at all,
 * whoever opened it. A unix socket left behind by a process that died is told from a live one by connecting,
 * which is why this comes before sandbox_enter(). */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/util.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include "daemon/daemon.h"

#define BACKLOG 1024

static bool is_loopback(const struct sockaddr *sa)
{
    const struct sockaddr_in6 *in6 = (const void *)sa;

    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr) >> 24 == 127;
    return sa->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

/* evutil_parse_sockaddr_port() takes no port 0, and an address without a port for one. */
static int parse_address(struct sockaddr_storage *ret, const char *text)
{
    struct sockaddr_in6 *in6 = (void *)ret;
    struct sockaddr_in *in = (void *)ret;
    const char *colon = strrchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : 0;
    bool bracket = *text == '[';
    char host[INET6_ADDRSTRLEN];
    unsigned port = 0;

    if (n >= sizeof(host) || n < 3 || (bracket && text[n - 1] != ']') || !colon[1] || strlen(colon + 1) > 5)
        return -EINVAL;
    for (const char *p = colon + 1; *p; p++) {
        if (*p < '0' || *p > '9')
            return -EINVAL;
        port = 10 * port + (unsigned)(*p - '0');
    }
    if (port > 65535)
        return -EINVAL;
    memcpy(host, text + bracket, n - 2 * bracket);
    host[n - 2 * bracket] = 0;
    memset(ret, 0, sizeof(*ret));
    ret->ss_family = bracket ? AF_INET6 : AF_INET;
    if (inet_pton(ret->ss_family, host, bracket ? (void *)&in6->sin6_addr : (void *)&in->sin_addr) != 1)
        return -EINVAL;
    if (bracket)
        in6->sin6_port = htons((in_port_t)port);
    else
        in->sin_port = htons((in_port_t)port);
    return bracket ? sizeof(*in6) : sizeof(*in);
}

int listen_address(struct sockaddr_storage *ret, const char *text, struct err *err)
{
    struct sockaddr_storage sa;
    int len = parse_address(&sa, text);

    if (len < 0)
        return err_set(err, len, "\"%.80s\" is not ADDRESS:PORT such as 127.0.0.1:8420", text);
    *ret = sa;
    return len;
}

bool listen_is_loopback(const struct sockaddr_storage *a)
{
    return is_loopback((const struct sockaddr *)a);
}

/* May this be served? The same whether we opened it or not. */
static int judge(struct listener *l, const struct config *c, struct err *err)
{
    if (l->is_unix || (l->is_loopback && !l->tls))
        return 0;
    l->tls = true;
    if (!*c->listen.tls_cert || !*c->listen.tls_key)
        return err_set(err, -EINVAL, "%s is not loopback and would need TLS: set [listen] tls_cert and tls_key",
                       l->name);
    if (l->is_loopback)
        return 0;
    if (!c->auth.required || c->auth.n_keys == 0)
        return err_set(err, -EINVAL, "%s can be reached from elsewhere: %s", l->name, c->auth.required ?
                       "make a key first with ternctl key add" : "set [auth] required = yes");
    return 0;
}

/* What a bound socket is, into everything of *l but fd. 0, or -EINVAL when it is not one we serve. */
static int describe(struct listener *l, int fd)
{
    struct sockaddr_storage sa = {0};
    socklen_t len = sizeof(sa);
    char host[INET6_ADDRSTRLEN] = "";
    struct sockaddr_in *in = (void *)&sa;
    struct sockaddr_in6 *in6 = (void *)&sa;

    if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
        return -errno;
    l->is_unix = sa.ss_family == AF_UNIX;
    l->is_loopback = is_loopback((struct sockaddr *)&sa);
    if (l->is_unix)
        snprintf(l->name, sizeof(l->name), "unix:%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path)),
                 ((struct sockaddr_un *)(void *)&sa)->sun_path);
    else if (sa.ss_family == AF_INET)
        snprintf(l->name, sizeof(l->name), "%s:%u", inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host)),
                 ntohs(in->sin_port));
    else if (sa.ss_family == AF_INET6)
        snprintf(l->name, sizeof(l->name), "[%s]:%u", inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host)),
                 ntohs(in6->sin6_port));
    return l->is_unix || sa.ss_family == AF_INET || sa.ss_family == AF_INET6 ? 0 : -EINVAL;
}

static int take_passed(struct listener ret[LISTEN_MAX], int n_fds, const struct config *c, struct err *err)
{
    int fd, r;

    if (n_fds > LISTEN_MAX)
        return err_set(err, -EINVAL, "%d sockets were passed in, at most %d can be served", n_fds, LISTEN_MAX);
    for (int i = 0; i < n_fds; i++) {
        fd = SD_LISTEN_FDS_START + i;
        if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0)
            return err_set(err, -EINVAL, "passed file descriptor %d is not a listening stream socket", fd);
        if (describe(&ret[i], fd) < 0)
            return err_set(err, -EINVAL, "passed file descriptor %d is neither a unix nor a TCP socket", fd);
        r = judge(&ret[i], c, err);
        if (r < 0)
            return r;
        if (evutil_make_socket_nonblocking(fd) < 0)
            return err_set(err, -errno, "passed socket %s: %s", ret[i].name, strerror(errno));
        ret[i].fd = fd;
    }
    return n_fds;
}

static int open_tcp(struct listener *ret, const char *address, struct err *err)
{
    struct sockaddr_storage sa;
    cleanup(closep) int fd = -1;
    int len, one = 1;

    len = listen_address(&sa, address, err);
    if (len < 0)
        return len;
    fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(fd, (struct sockaddr *)&sa, (socklen_t)len) < 0 || listen(fd, BACKLOG) < 0)
        return err_set(err, -errno, "cannot listen on %s: %s%s", address, strerror(errno),
                       errno == EADDRINUSE ? "; is another ternd running?" : "");
    if (describe(ret, fd) < 0)
        return -EINVAL;
    ret->ours = true;
    ret->fd = fd;
    fd = -1;
    return 0;
}

/* Remove a socket that nobody listens on any more. 0, or -EADDRINUSE. */
static int remove_stale(const struct sockaddr_un *sa)
{
    cleanup(closep) int fd = -1;
    struct stat st;

    if (lstat(sa->sun_path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return -EADDRINUSE;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    /* EAGAIN: its queue is full, so somebody is there. */
    if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 || errno != ECONNREFUSED)
        return -EADDRINUSE;
    return unlink(sa->sun_path) < 0 ? -errno : 0;
}

static int open_unix(struct listener *ret, const char *path, struct err *err)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    cleanup(closep) int fd = -1;
    mode_t mask;
    int r;

    if (strlen(path) >= sizeof(sa.sun_path))
        return err_set(err, -ENAMETOOLONG, "[listen] unix: the path is too long");
    strcpy(sa.sun_path, path);
    r = remove_stale(&sa);
    if (r < 0)
        return err_set(err, r, "cannot listen on %s: %s%s", path, strerror(-r),
                       r == -EADDRINUSE ? "; is another ternd running?" : "");
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    /* Never, not even for a moment, open to others. */
    mask = umask(0117);
    r = bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, BACKLOG) < 0 ? -errno : 0;
    umask(mask);
    if (r < 0)
        return err_set(err, r, "cannot listen on %s: %s", path, strerror(-r));
    r = describe(ret, fd);
    if (r < 0)
        return r;
    ret->ours = true;
    ret->fd = fd;
    fd = -1;
    return 0;
}

int listen_open(struct listener ret[LISTEN_MAX], size_t *ret_n, const struct config *c, struct err *err)
{
    struct listener list[LISTEN_MAX] = {0};
    size_t n = 0;
    int r;

    /* Also marks them close-on-exec and forgets the environment. */
    r = sd_listen_fds(1);
    if (r < 0)
        return err_set(err, r, "$LISTEN_FDS: %s", strerror(-r));
    if (r > 0) {
        r = take_passed(list, r, c, err);
        if (r < 0)
            return r;
        n = (size_t)r;
    } else {
        if (*c->listen.tcp) {
            r = open_tcp(&list[n], c->listen.tcp, err);
            if (r == 0)
                r = judge(&list[n++], c, err);
            if (r < 0)
                goto fail;
        }
        if (*c->listen.tls) {
            r = open_tcp(&list[n], c->listen.tls, err);
            list[n].tls = true;        /* on loopback too */
            if (r == 0)
                r = judge(&list[n++], c, err);
            if (r < 0)
                goto fail;
        }
        if (*c->listen.unix_path) {
            r = open_unix(&list[n], c->listen.unix_path, err);
            if (r < 0)
                goto fail;
            n++;
        }
    }
    if (n == 0)
        return err_set(err, -EINVAL, "nothing to listen on: set [listen] tcp or unix, or pass sockets in");
    memcpy(ret, list, sizeof(list));
    *ret_n = n;
    return 0;
fail:
    while (n > 0)
        close(list[--n].fd);
    return r;
}

void listen_unlink(const struct listener *listeners, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (listeners[i].is_unix && listeners[i].ours)
            unlink(listeners[i].name + strlen("unix:"));
}
