/* What reaches stderr, and what reaches a journal: the latter is played by a socket at journald's path inside a mount
 * namespace of the test's own, and skipped where the kernel does not allow one. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include "base/log.h"

/* stderr becomes a pipe; Criterion runs each test in a process of its own. */
static int capture(void)
{
    int fds[2];

    cr_assert_eq(pipe2(fds, O_NONBLOCK), 0);
    cr_assert(dup2(fds[1], STDERR_FILENO) >= 0);
    close(fds[1]);
    return fds[0];
}

static const char *captured(int fd)
{
    static char out[16384];
    ssize_t n = read(fd, out, sizeof(out) - 1);

    out[MAX(n, 0)] = 0;
    return out;
}

static const char *expected(const char *fmt)
{
    static char out[512];

    snprintf(out, sizeof(out), fmt, (int)getpid());
    return out;
}

Test(log, line)
{
    int fd = capture();

    log_warning("before %s", "init");
    cr_assert_str_eq(captured(fd), expected("tern[%d] warning: before init\n"));
    log_init("ternd", LOG_LEVEL_NOTICE);
    log_info("not shown");
    log_debug("not shown");
    cr_assert_str_eq(captured(fd), "");
    log_notice("%d", 5);
    cr_assert_str_eq(captured(fd), expected("ternd[%d] notice: 5\n"));
    log_write(LOG_LEVEL_ERROR, "01ARYZ", "failed");
    cr_assert_str_eq(captured(fd), expected("ternd[%d] error: failed (request 01ARYZ)\n"));
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("shown");
    cr_assert_str_eq(captured(fd), expected("ternd[%d] debug: shown\n"));
}

Test(log, control_characters_are_blanked)
{
    int fd = capture();

    log_init("ternd", LOG_LEVEL_INFO);
    log_write(LOG_LEVEL_INFO, "a\nb", "x\r\ny\033[31m\tz\x7f\xc2\x9bq \xc3\xa9\x01");
    cr_assert_str_eq(captured(fd), expected("ternd[%d] info: x  y [31m z   q \xc3\xa9  (request a b)\n"));
    for (int c = 1; c < 256; c++) {
        const char *out;
        log_info("<%c>", c);
        out = captured(fd);
        cr_assert_eq(strchr(out, '\n'), out + strlen(out) - 1);
        for (const char *p = out; *p != '\n'; p++)
            cr_assert((unsigned char)*p >= 0x20 && *p != 0x7f, "byte %d came through", c);
    }
}

Test(log, long_lines_are_cut_and_errno_is_kept)
{
    int fd = capture();
    char text[10000], id[500];
    const char *out;

    memset(text, 'a', sizeof(text) - 1);
    memset(id, 'b', sizeof(id) - 1);
    text[sizeof(text) - 1] = id[sizeof(id) - 1] = 0;
    errno = ENOTTY;
    log_write(LOG_LEVEL_ERROR, id, "%s", text);
    cr_assert_eq(errno, ENOTTY);
    out = captured(fd);
    cr_assert_lt(strlen(out), 2400);
    cr_assert_eq(out[strlen(out) - 1], '\n');
    close(STDERR_FILENO);
    errno = ENOTTY;
    log_error("nowhere");
    cr_assert_eq(errno, ENOTTY);
}

Test(log, levels)
{
    enum log_level level = LOG_LEVEL_DEBUG;

    cr_assert_eq(log_level_from_string(&level, "warning"), 0);
    cr_assert_eq(level, LOG_LEVEL_WARNING);
    cr_assert_eq(log_level_from_string(&level, "loud"), -EINVAL);
    cr_assert_eq(log_level_from_string(&level, ""), -EINVAL);
    cr_assert_eq(level, LOG_LEVEL_WARNING);
}

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), r;

    if (fd < 0)
        return -errno;
    r = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return r;
}

/* A datagram socket where journald's would be, or -1. */
static int journal_play(void)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket"};
    char map[64];
    int fd;

    snprintf(map, sizeof(map), "0 %d 1", (int)getuid());
    if (unshare(CLONE_NEWNS) < 0 &&
        (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 || write_file("/proc/self/uid_map", map) < 0))
        return -1;
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mount("tmpfs", "/run", "tmpfs", 0, "mode=0755") < 0 ||
        mkdir("/run/systemd", 0755) < 0 || mkdir("/run/systemd/journal", 0755) < 0)
        return -1;
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return fd >= 0 && bind(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0 ? fd : -1;
}

static void journal_stream_set(int ino_off)
{
    struct stat st;
    char s[64];

    fstat(STDERR_FILENO, &st);
    snprintf(s, sizeof(s), "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino + ino_off);
    setenv("JOURNAL_STREAM", s, 1);
}

Test(log, journal)
{
    int journal = journal_play(), fd;
    char got[4096];
    ssize_t n;

    if (journal < 0)
        cr_skip_test("no mount namespace allowed here, so no journal can be played");
    fd = capture();

    /* Someone else's stream: stderr was redirected. */
    journal_stream_set(1);
    log_init("ternd", LOG_LEVEL_INFO);
    log_info("to stderr");
    cr_assert_str_eq(captured(fd), expected("ternd[%d] info: to stderr\n"));
    cr_assert(recv(journal, got, sizeof(got), 0) < 0);

    journal_stream_set(0);
    log_init("ternd", LOG_LEVEL_INFO);
    log_write(LOG_LEVEL_WARNING, "01ARYZ", "one\ntwo");
    cr_assert_str_eq(captured(fd), "");
    n = recv(journal, got, sizeof(got) - 1, 0);
    cr_assert_gt(n, 0);
    got[n] = 0;
    cr_assert_str_eq(got, "MESSAGE=one two\nSYSLOG_IDENTIFIER=ternd\nPRIORITY=4\nTERN_REQUEST_ID=01ARYZ\n");
    log_error("plain");
    n = recv(journal, got, sizeof(got) - 1, 0);
    cr_assert_gt(n, 0);
    got[n] = 0;
    cr_assert_str_eq(got, "MESSAGE=plain\nSYSLOG_IDENTIFIER=ternd\nPRIORITY=3\n");

    unlink("/run/systemd/journal/socket");
    log_init("ternd", LOG_LEVEL_INFO);
    log_info("no journal");
    cr_assert_str_eq(captured(fd), expected("ternd[%d] info: no journal\n"));
}
