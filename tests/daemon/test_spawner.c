/* The spawner: workers start and are reachable, their deaths are told, and nothing outlives the front. A plain main,
 * because the spawner re-executes this very program as the workers: they answer with one line about themselves, then
 * wait for the end. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "daemon/daemon.h"

static int failures;
#define CHECK(c) do { \
    if (!(c)) { \
        printf("FAILED line %d: %s (%s)\n", __LINE__, #c, strerror(errno)); \
        failures++; \
    } \
} while (0)

/* argv: --role ROLE --fd N, then the front's own arguments. */
static int worker_main(int argc, char **argv)
{
    int fd = atoi(argv[4]);
    char line[128];

    snprintf(line, sizeof(line), "%s %s %s %s", argv[2], argc > 5 ? argv[5] : "",
             getenv("NOTIFY_SOCKET") ? "notify" : "-", getenv("CREDENTIALS_DIRECTORY") ? "credentials" : "-");
    if (send(fd, line, strlen(line) + 1, 0) < 0)
        return 1;
    if (argc > 5 && strcmp(argv[5], "stubborn") == 0)
        for (;;)
            pause();
    return read(fd, line, 1) == 0 ? 0 : 1;
}

static int wait_event(int fd, struct spawn_event *e)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    CHECK(poll(&p, 1, 5000) == 1);
    return spawner_read(fd, e);
}

static pid_t start(int fd, enum spawn_role role, const char *expected, int *ret_fd)
{
    struct spawn_event e = {.fd = -1};
    char line[128] = "";

    CHECK(spawner_order(fd, role) == 0);
    CHECK(wait_event(fd, &e) == 1 && !e.died && e.role == role && e.fd >= 0 && e.pid > 0);
    CHECK(recv(e.fd, line, sizeof(line) - 1, 0) > 0);
    CHECK(strcmp(line, expected) == 0);
    *ret_fd = e.fd;
    return e.pid;
}

static void test_life(void)
{
    char *argv[] = {"tern", "plain", NULL};
    struct spawn_event e;
    int fd, engine, egress;
    pid_t spawner, engine_pid, egress_pid;

    setenv("NOTIFY_SOCKET", "/nowhere", 1);
    setenv("CREDENTIALS_DIRECTORY", "/nowhere", 1);
    CHECK(spawner_start(&fd, &spawner, 2, argv) == 0);
    CHECK(spawner_read(fd, &e) == 0);
    engine_pid = start(fd, SPAWN_ENGINE, "engine plain - -", &engine);
    egress_pid = start(fd, SPAWN_EGRESS, "egress plain - credentials", &egress);
    CHECK(engine_pid != egress_pid);

    CHECK(spawner_kill(fd, SPAWN_ENGINE) == 0);
    CHECK(wait_event(fd, &e) == 1 && e.died && e.role == SPAWN_ENGINE && e.pid == engine_pid);
    CHECK(WIFSIGNALED(e.wait_status) && WTERMSIG(e.wait_status) == SIGKILL);
    close(engine);

    CHECK(kill(egress_pid, SIGUSR1) == 0);
    CHECK(wait_event(fd, &e) == 1 && e.died && e.role == SPAWN_EGRESS && e.pid == egress_pid);
    CHECK(WIFSIGNALED(e.wait_status) && WTERMSIG(e.wait_status) == SIGUSR1);
    close(egress);

    /* A worker whose socket is closed ends by itself. */
    engine_pid = start(fd, SPAWN_ENGINE, "engine plain - -", &engine);
    close(engine);
    CHECK(wait_event(fd, &e) == 1 && e.died && e.pid == engine_pid && e.wait_status == 0);

    close(fd);
    CHECK(waitpid(spawner, NULL, 0) == spawner);
}

static bool gone(pid_t pid)
{
    return kill(pid, 0) < 0 && errno == ESRCH;
}

/* `victim`: 0 the front, 1 the spawner. Workers that ignore their socket must not outlive either. This process is the
 * subreaper, so orphans come to it. */
static void test_no_orphan(int victim)
{
    char *argv[] = {"tern", "stubborn", NULL};
    int report[2], fd, engine, egress;
    pid_t front, pids[3];
    uint64_t began;

    CHECK(pipe(report) == 0);
    fflush(stdout);
    front = fork();
    if (front == 0) {
        CHECK(spawner_start(&fd, &pids[0], 2, argv) == 0);
        pids[1] = start(fd, SPAWN_ENGINE, "engine stubborn - -", &engine);
        pids[2] = start(fd, SPAWN_EGRESS, "egress stubborn - credentials", &egress);
        CHECK(write(report[1], pids, sizeof(pids)) == sizeof(pids));
        for (;;)
            pause();
    }
    CHECK(read(report[0], pids, sizeof(pids)) == sizeof(pids));
    began = clock_usec();
    kill(victim == 0 ? front : pids[0], SIGKILL);
    while (clock_usec() - began < USEC_PER_SEC) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (gone(pids[1]) && gone(pids[2]))
            break;
        usleep(5000);
    }
    CHECK(gone(pids[1]) && gone(pids[2]));
    kill(front, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    close(report[0]);
    close(report[1]);
}

int main(int argc, char **argv)
{
    if (argc > 4 && strcmp(argv[1], "--role") == 0)
        return worker_main(argc, argv);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    test_life();
    test_no_orphan(0);
    test_no_orphan(1);
    puts(failures ? "failed" : "ok");
    return failures ? 1 : 0;
}
