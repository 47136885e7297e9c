/* listen.c and notify.c: addresses, sockets of our own, sockets that were passed in, and the words with a service
 * manager that is this test. Passed sockets sit at descriptors 3 and up of a process whose pid is named, so those
 * cases run in a forked child. */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include "daemon/daemon.h"

static char directory[64];

static void setup(void)
{
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_PID");
    strcpy(directory, "/tmp/tern-listen-XXXXXX");
    cr_assert(mkdtemp(directory));
}

static void teardown(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -r %s", directory);
    cr_assert(system(command) == 0);
}

TestSuite(listen, .init = setup, .fini = teardown);
TestSuite(notify, .init = setup, .fini = teardown);

static struct config config_of(const char *tcp, const char *name)
{
    struct config c = {0};

    strcpy(c.listen.tcp, tcp);
    if (name)
        snprintf(c.listen.unix_path, sizeof(c.listen.unix_path), "%s/%s", directory, name);
    return c;
}

Test(listen, addresses)
{
    static const char *const right[] = {"127.0.0.1:8420", "127.8.9.10:0", "[::1]:65535"};
    static const char *const far[] = {"0.0.0.0:80", "192.168.1.1:80", "[::]:80", "[2001:db8::1]:443", "128.0.0.1:1"};
    static const char *const wrong[] = {
        "", ":", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:80x", "::1:80", "[::1]", "[::1:80", "localhost:80", "[127.0.0.1]:80", "127.0.0.1:000080",
        "[]:1", "[:1",
    };
    struct sockaddr_storage sa;
    struct err err;

    for (size_t i = 0; i < ARRAY_SIZE(right); i++)
        cr_expect(listen_address(&sa, right[i], &err) > 0 && listen_is_loopback(&sa), "%s", right[i]);
    for (size_t i = 0; i < ARRAY_SIZE(far); i++)
        cr_expect(listen_address(&sa, far[i], &err) > 0 && !listen_is_loopback(&sa), "%s", far[i]);
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        cr_expect_eq(listen_address(&sa, wrong[i], &err), -EINVAL, "%s", wrong[i]);
    cr_expect_eq(listen_address(&sa, "127.0.0.1:8420", &err), (int)sizeof(struct sockaddr_in));
    cr_expect_eq(((struct sockaddr_in *)&sa)->sin_port, htons(8420));
}

/* Every way to open an address, with and without certificate, demand for keys, and a key: what can be reached from
 * elsewhere is served with TLS and to holders of keys, or not at all. */
Test(listen, who_may_be_served)
{
    static const struct { const char *address; bool far; } binds[] = {
        {"127.0.0.1:0", false}, {"127.9.9.9:0", false}, {"[::1]:0", false}, {"0.0.0.0:0", true}, {"[::]:0", true},
    };
    unsigned n = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(binds) * 16; i++) {
        bool far = binds[i / 16].far, tls = i & 1, cert = i & 2, required = i & 4, key = i & 8, served;
        struct config c = config_of(tls ? "" : binds[i / 16].address, NULL);
        struct listener l[LISTEN_MAX];
        struct err err = {""};
        size_t n_listeners = 0;

        if (tls)
            strcpy(c.listen.tls, binds[i / 16].address);
        strcpy(c.listen.tls_cert, cert ? "cert.pem" : "");
        strcpy(c.listen.tls_key, cert ? "key.pem" : "");
        c.auth.required = required;
        c.auth.n_keys = key;
        served = listen_open(l, &n_listeners, &c, &err) == 0;
        /* A listener for TLS has its certificate; one that is far, its key too. */
        cr_expect(served == ((!tls && !far) || (cert && (!far || (required && key)))), "%s %u: %s",
                  binds[i / 16].address, i % 16, err.msg);
        cr_expect(served || *err.msg);
        if (served) {
            cr_expect(n_listeners == 1 && l[0].tls == (tls || far));
            close(l[0].fd);
        }
        n++;
    }
    cr_expect_eq(n, 80);
}

Test(listen, own_sockets)
{
    struct config c = config_of("127.0.0.1:0", "s"), d;
    struct listener l[LISTEN_MAX], m[LISTEN_MAX];
    struct stat st;
    struct err err = {""};
    size_t n = 0, k = 0;

    cr_assert_eq(listen_open(l, &n, &c, &err), 0, "%s", err.msg);
    cr_assert_eq(n, 2);
    cr_expect(!l[0].is_unix && l[0].is_loopback);
    cr_expect(strncmp(l[0].name, "127.0.0.1:", 10) == 0 && strcmp(l[0].name, "127.0.0.1:0") != 0);
    cr_expect(l[1].is_unix && strncmp(l[1].name, "unix:/tmp/", 10) == 0);
    cr_expect(fcntl(l[0].fd, F_GETFL) & O_NONBLOCK);
    cr_expect(fcntl(l[1].fd, F_GETFD) & FD_CLOEXEC);
    cr_assert_eq(stat(c.listen.unix_path, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0660);

    /* A second daemon is told, and takes nothing away. */
    d = config_of(l[0].name, NULL);
    cr_expect_eq(listen_open(m, &k, &d, &err), -EADDRINUSE);
    cr_expect(strstr(err.msg, "is another ternd running?"), "%s", err.msg);
    d = config_of("", "s");
    cr_expect_eq(listen_open(m, &k, &d, &err), -EADDRINUSE);
    cr_expect_eq(stat(c.listen.unix_path, &st), 0);

    /* One that died left its socket behind. */
    close(l[1].fd);
    cr_assert_eq(listen_open(m, &k, &d, &err), 0, "%s", err.msg);
    listen_unlink(m, k);
    cr_expect_lt(stat(c.listen.unix_path, &st), 0);
}

Test(listen, what_is_no_socket_stays)
{
    struct config c = config_of("", "file"), nothing = config_of("", NULL);
    struct listener l[LISTEN_MAX];
    struct stat st;
    struct err err;
    size_t n;

    close(open(c.listen.unix_path, O_CREAT | O_WRONLY, 0600));
    cr_expect_lt(listen_open(l, &n, &c, &err), 0);
    cr_expect_eq(stat(c.listen.unix_path, &st), 0);
    cr_expect_lt(listen_open(l, &n, &nothing, &err), 0);
    cr_expect(strstr(err.msg, "nothing to listen on"));
}

/* A bound, listening (unless `plain`) TCP socket at descriptor `fd`. */
static void place_tcp(int fd, in_addr_t address, bool plain)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
    int s = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(s, (struct sockaddr *)&sa, sizeof(sa)) < 0 || (!plain && listen(s, 4) < 0) || (s != fd && dup2(s, fd) < 0))
        _exit(9);
}

static void place_unix(int fd)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int s = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/passed", directory);
    unlink(sa.sun_path);
    if (bind(s, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(s, 4) < 0 || (s != fd && dup2(s, fd) < 0))
        _exit(9);
}

/* Runs listen_open() with two passed sockets made by `place`; 0, or which check failed. */
static int with_passed(void (*place)(void), bool accepted)
{
    struct config c = config_of("127.0.0.1:0", "passed");
    struct listener l[LISTEN_MAX];
    struct stat st;
    struct err err;
    size_t n = 0;
    char pid[16];
    int r;

    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "2", 1);
    place();
    r = listen_open(l, &n, &c, &err);
    if (!accepted)
        return r < 0 ? 0 : 1;
    if (r < 0 || n != 2 || l[0].fd != 3 || l[1].fd != 4)
        return 2;
    if (l[0].is_unix || !l[0].is_loopback || !l[1].is_unix)
        return 3;
    if (!(fcntl(3, F_GETFL) & O_NONBLOCK) || !(fcntl(4, F_GETFD) & FD_CLOEXEC) || getenv("LISTEN_FDS"))
        return 4;
    /* It is the service manager's, even when the configuration names the same path. */
    listen_unlink(l, n);
    return stat(c.listen.unix_path, &st) < 0 ? 5 : 0;
}

static void place_good(void) { place_tcp(3, INADDR_LOOPBACK, false); place_unix(4); }
static void place_open_to_all(void) { place_tcp(3, INADDR_ANY, false); place_unix(4); }
static void place_not_listening(void) { place_tcp(3, INADDR_LOOPBACK, true); place_unix(4); }
static void place_missing(void) { place_tcp(3, INADDR_LOOPBACK, false); close(4); }

static int in_child(void (*place)(void), bool accepted)
{
    pid_t pid = fork();
    int status;

    if (pid == 0)
        _exit(with_passed(place, accepted));
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(listen, passed_sockets)
{
    cr_expect_eq(in_child(place_good, true), 0);
}

Test(listen, passed_sockets_that_are_not_ours_to_serve)
{
    cr_expect_eq(in_child(place_open_to_all, false), 0);
    cr_expect_eq(in_child(place_not_listening, false), 0);
    cr_expect_eq(in_child(place_missing, false), 0);
}

static int manager;

static const char *heard(void)
{
    static char text[1024];
    ssize_t n = recv(manager, text, sizeof(text) - 1, MSG_DONTWAIT);

    text[n > 0 ? n : 0] = 0;
    return text;
}

static void be_manager(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};

    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/notify", directory);
    manager = socket(AF_UNIX, SOCK_DGRAM, 0);
    cr_assert_eq(bind(manager, (struct sockaddr *)&sa, sizeof(sa)), 0);
    setenv("NOTIFY_SOCKET", sa.sun_path, 1);
}

Test(notify, words)
{
    struct daemon d = {0};
    unsigned long long usec = 0;

    be_manager();
    notify_status(&d, "hello %d\nREADY=1", 5);
    cr_expect_str_eq(heard(), "STATUS=hello 5 READY=1");
    cr_expect_str_eq(d.status, "hello 5 READY=1");
    notify_status(&d, "hello 5 READY=1");
    cr_expect_str_eq(heard(), "", "the same status is not said twice");
    notify_ready(&d);
    cr_expect_str_eq(heard(), "READY=1\nSTATUS=hello 5 READY=1");
    notify_reloading(&d);
    cr_expect_eq(sscanf(heard(), "RELOADING=1\nMONOTONIC_USEC=%llu", &usec), 1);
    cr_expect_gt(usec, 0);
    notify_stopping(&d);
    cr_expect(strncmp(heard(), "STOPPING=1\n", 11) == 0);
    notify_watchdog();
    cr_expect_str_eq(heard(), "WATCHDOG=1");
}

Test(notify, nobody_there)
{
    struct daemon d = {0};

    unsetenv("NOTIFY_SOCKET");
    notify_ready(&d);
    notify_status(&d, "%0200d", 1);
    cr_expect_eq(strlen(d.status), sizeof(d.status) - 1);
}

Test(notify, watchdog_period)
{
    char pid[16];

    unsetenv("WATCHDOG_USEC");
    cr_expect_eq(notify_watchdog_usec(), 0);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("WATCHDOG_USEC", "30000000", 1);
    setenv("WATCHDOG_PID", pid, 1);
    cr_expect_eq(notify_watchdog_usec(), 10000000);
    setenv("WATCHDOG_PID", "1", 1);
    cr_expect_eq(notify_watchdog_usec(), 0);
}
