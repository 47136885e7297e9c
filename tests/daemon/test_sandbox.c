/* What each role may no longer do, by trying: every attempt is made in a forked child after sandbox_enter(), and what
 * the role still needs is tried too. A plain main, because the children end by themselves and the front's threads
 * take part. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include "daemon/daemon.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define SOCKET_PATH "/tmp/tern-sandbox-%d"

static int failures;

static void check(bool ok, const char *what, const char *detail)
{
    if (ok)
        return;
    printf("FAILED: %s (%s)\n", what, detail);
    failures++;
}

/* Refused by the filter, not by chance: EPERM exactly. */
#define REFUSED(call) do { \
    errno = 0; \
    long r_ = (long)(call); \
    check(r_ == -1 && errno == EPERM, #call, strerror(errno)); \
} while (0)
#define WORKS(call) do { errno = 0; check((call), #call, strerror(errno)); } while (0)

static struct sockaddr_in loopback(in_port_t port)
{
    return (struct sockaddr_in) {.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* The sockets a front would hold, made before the sandbox: a listener, a connection that is accepted already, one
 * that waits to be accepted, a target that somebody listens on, and a datagram socket that plays the service
 * manager. */
struct world {
    int listener, accepted, target, datagram;
    struct sockaddr_in target_address;
    struct sockaddr_un datagram_address;
};

static int tcp_listener(struct sockaddr_in *ret_address)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof(*ret_address);
    int one = 5;

    *ret_address = loopback(0);
    if (bind(fd, (struct sockaddr *)ret_address, len) < 0 || listen(fd, 16) < 0)
        exit(1);
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &one, sizeof(one));
    getsockname(fd, (struct sockaddr *)ret_address, &len);
    return fd;
}

static int dial(const struct sockaddr_in *a)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (connect(fd, (const struct sockaddr *)a, sizeof(*a)) < 0)
        exit(1);
    return fd;
}

static void world_make(struct world *w)
{
    struct sockaddr_in address;
    struct sockaddr_un un = {.sun_family = AF_UNIX};

    w->listener = tcp_listener(&address);
    dial(&address);
    w->accepted = accept(w->listener, NULL, NULL);
    dial(&address);                                     /* waits in the queue */
    w->target = tcp_listener(&w->target_address);
    snprintf(un.sun_path, sizeof(un.sun_path), SOCKET_PATH, (int)getpid());
    w->datagram = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (bind(w->datagram, (struct sockaddr *)&un, sizeof(un)) < 0)
        exit(1);
    w->datagram_address = un;
}

static void *thread_main(void *arg)
{
    *(int *)arg = 42;
    return NULL;
}

static void threads_work(void)
{
    pthread_t t;
    int value = 0;

    WORKS(pthread_create(&t, NULL, thread_main, &value) == 0);
    pthread_join(t, NULL);
    WORKS(value == 42);
}

/* What no role may do. */
static void common(void)
{
    char *argv[] = {"/bin/false", NULL};                /* should it run after all, this child has failed */
    char dummy[128] = {0};

    REFUSED(execv("/bin/false", argv));
    REFUSED(syscall(SYS_execveat, AT_FDCWD, "/bin/false", argv, NULL, 0));
    REFUSED(syscall(SYS_io_uring_setup, 4, dummy));
    REFUSED(syscall(SYS_bpf, 0, dummy, sizeof(dummy)));
    REFUSED(syscall(SYS_perf_event_open, dummy, 0, -1, -1, 0));
    REFUSED(syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0));
    REFUSED(syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL));
    REFUSED(syscall(SYS_unshare, CLONE_NEWUSER));
    REFUSED(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    REFUSED(syscall(SYS_setns, -1, 0));
    REFUSED(syscall(SYS_keyctl, 0, 0));
    REFUSED(syscall(SYS_userfaultfd, 0));
    REFUSED(syscall(SYS_pidfd_getfd, -1, 0, 0));
    if (!SANITIZED)
        REFUSED(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
    errno = 0;
    WORKS(syscall(SYS_clone3, NULL, 0) == -1 && errno == ENOSYS);
    threads_work();
}

static void file_is_read(void)
{
    char c;
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);

    WORKS(fd >= 0 && read(fd, &c, 1) == 1);
    close(fd);
}

static void no_way_out(struct world *w)
{
    struct sockaddr_in *to = &w->target_address;
    struct sockaddr unspecified = {.sa_family = AF_UNSPEC};
    struct iovec iov = {"x", 1};
    struct msghdr msg = {.msg_name = to, .msg_namelen = sizeof(*to), .msg_iov = &iov, .msg_iovlen = 1};
    struct mmsghdr mmsg = {.msg_hdr = msg};

    REFUSED(socket(AF_INET, SOCK_STREAM, 0));
    REFUSED(socket(AF_INET6, SOCK_DGRAM, 0));
    REFUSED(socket(AF_NETLINK, SOCK_RAW, 0));
    REFUSED(socket(AF_PACKET, SOCK_RAW, 0));
    REFUSED(connect(w->accepted, &unspecified, sizeof(unspecified)));
    REFUSED(connect(w->accepted, (struct sockaddr *)to, sizeof(*to)));
    /* Through a listener that is shut down and so closed again. */
    shutdown(w->listener, SHUT_RDWR);
    REFUSED(connect(w->listener, (struct sockaddr *)to, sizeof(*to)));
    REFUSED(sendto(w->listener, "x", 1, MSG_FASTOPEN | MSG_NOSIGNAL, (struct sockaddr *)to, sizeof(*to)));
    REFUSED(sendmsg(w->listener, &msg, MSG_FASTOPEN));
    REFUSED(sendmmsg(w->listener, &mmsg, 1, MSG_FASTOPEN));
    REFUSED(listen(w->listener, 1));
}

static void front(struct world *w)
{
    int fd, pair[2];
    struct iovec iov[2] = {{"a", 1}, {"b", 1}};

    common();
    file_is_read();
    WORKS((fd = accept4(w->listener, NULL, NULL, SOCK_NONBLOCK)) >= 0);
    WORKS(writev(fd, iov, 2) == 2);
    WORKS(writev(w->accepted, iov, 2) == 2);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    WORKS(fd >= 0);
    WORKS(sendto(fd, "READY=1", 7, 0, (struct sockaddr *)&w->datagram_address, sizeof(w->datagram_address)) == 7);
    REFUSED(bind(fd, (struct sockaddr *)&w->datagram_address, sizeof(w->datagram_address)));
    WORKS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    WORKS(unlink(w->datagram_address.sun_path) == 0);
    no_way_out(w);
}

static void nothing_written(const char *path)
{
    struct stat st;
    uint64_t how[3] = {O_RDONLY, 0, 0};

    REFUSED(open(path, O_WRONLY));
    REFUSED(open(path, O_RDWR | O_CLOEXEC));
    REFUSED(open(path, O_RDONLY | O_TRUNC));
    REFUSED(open("/tmp/tern-sandbox-new", O_WRONLY | O_CREAT, 0600));
    REFUSED(open("/tmp/tern-sandbox-new", O_RDONLY | O_CREAT, 0600));
    REFUSED(open("/tmp", O_TMPFILE | O_RDWR, 0600));
    REFUSED(open(path, O_ACCMODE));
#ifdef SYS_open
    REFUSED(syscall(SYS_open, path, O_WRONLY));
    REFUSED(syscall(SYS_creat, path, 0600));
#endif
    errno = 0;
    WORKS(syscall(SYS_openat2, AT_FDCWD, path, how, sizeof(how)) == -1 && errno == ENOSYS);
    REFUSED(truncate(path, 0));
    REFUSED(unlink(path));
    REFUSED(rename(path, "/tmp/tern-sandbox-new"));
    REFUSED(chmod(path, 0777));
    REFUSED(symlink(path, "/tmp/tern-sandbox-new"));
    WORKS(stat(path, &st) == 0);
}

static void engine(struct world *w)
{
    int pair[2], fd;
    void *map;

    common();
    file_is_read();
    WORKS((fd = open("/proc/self/exe", O_RDONLY)) >= 0);
    map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    WORKS(map != MAP_FAILED);
    REFUSED(socket(AF_UNIX, SOCK_DGRAM, 0));
    REFUSED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    REFUSED(accept4(w->listener, NULL, NULL, 0));
    REFUSED(bind(w->accepted, (struct sockaddr *)&w->target_address, sizeof(w->target_address)));
    no_way_out(w);
    nothing_written(w->datagram_address.sun_path);
    REFUSED(kill(getppid(), 0));
    REFUSED(syscall(SYS_tgkill, getppid(), getppid(), 0));
    WORKS(syscall(SYS_tgkill, getpid(), getpid(), 0) == 0);
}

static void egress(struct world *w)
{
    int fd;

    common();
    file_is_read();
    WORKS((fd = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    WORKS(connect(fd, (struct sockaddr *)&w->target_address, sizeof(w->target_address)) == 0);
    WORKS(socket(AF_INET6, SOCK_DGRAM, 0) >= 0 || errno == EAFNOSUPPORT);
    WORKS(socket(AF_UNIX, SOCK_STREAM, 0) >= 0);
    WORKS(socket(AF_NETLINK, SOCK_RAW, 0) >= 0);
    REFUSED(socket(AF_PACKET, SOCK_RAW, 0));
    REFUSED(socket(AF_VSOCK, SOCK_STREAM, 0));
    REFUSED(socket(AF_AX25, SOCK_DGRAM, 0));
    REFUSED(listen(w->listener, 1));
    REFUSED(accept4(w->listener, NULL, NULL, 0));
}

static void run(const char *name, enum sandbox_role role, void (*body)(struct world *w))
{
    char path[64];
    pid_t pid;
    int status;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        struct world w;
        struct err err;

        world_make(&w);
        if (sandbox_enter(role, &err) < 0) {
            printf("%s: %s\n", name, err.msg);
            exit(1);
        }
        body(&w);
        fflush(stdout);
        exit(failures ? 1 : 0);
    }
    waitpid(pid, &status, 0);
    snprintf(path, sizeof(path), SOCKET_PATH, (int)pid);
    unlink(path);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, name, "see above");
    printf("%s: %s\n", name, status == 0 ? "ok" : "FAILED");
}

#ifdef __x86_64__
/* A call by its i386 number must not slip through: the kernel ends the process. */
static void other_abi(void)
{
    struct err err;
    pid_t pid;
    int status;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        long r = 20;                                    /* getpid */

        if (sandbox_enter(SANDBOX_FRONT, &err) < 0)
            _exit(1);
        __asm__ volatile("int $0x80" : "+a"(r) : : "memory");
        _exit(r > 0 ? 2 : 3);
    }
    waitpid(pid, &status, 0);
    /* 3: this kernel has no i386 calls at all. */
    check(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 3), "i386 call", "was not stopped");
    pid = fork();
    if (pid == 0) {
        if (sandbox_enter(SANDBOX_FRONT, &err) < 0)
            _exit(1);
        _exit(syscall(0x40000000 | SYS_getpid) > 0 ? 2 : 3);
    }
    waitpid(pid, &status, 0);
    check(WIFSIGNALED(status), "x32 call", "was not stopped");
}
#endif

int main(void)
{
    run("front", SANDBOX_FRONT, front);
    run("engine", SANDBOX_ENGINE, engine);
    run("egress", SANDBOX_EGRESS, egress);
#ifdef __x86_64__
    other_abi();
#endif
    return failures ? 1 : 0;
}
