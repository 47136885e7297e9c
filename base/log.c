/* The log of a role. Under systemd, $JOURNAL_STREAM names the device and inode of the stream that was made for us; only
 * when it is still our stderr do lines go to the journal as fields, since a person may have redirected stderr. A line
 * is put together on the stack and leaves in one write, so that threads and roles sharing a stderr do not mix theirs.
 * sd_journal_sendv() says 0 also when there is no journal socket (a service in its own root), hence JOURNAL_SOCKET. */
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>
#include "base/log.h"

#define LINE_BYTES 2048
#define JOURNAL_SOCKET "/run/systemd/journal/socket"

static const struct { const char *name; int priority; } levels[] = {
    [LOG_LEVEL_ERROR]   = {"error", 3},
    [LOG_LEVEL_WARNING] = {"warning", 4},
    [LOG_LEVEL_NOTICE]  = {"notice", 5},
    [LOG_LEVEL_INFO]    = {"info", 6},
    [LOG_LEVEL_DEBUG]   = {"debug", 7},
};

static const char *log_role = "tern";
static atomic_int log_level = LOG_LEVEL_INFO;
static bool to_journal;

static bool stderr_is_journal(void)
{
    const char *s = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;
    char end;

    return s && sscanf(s, "%llu:%llu%c", &dev, &ino, &end) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
           dev == st.st_dev && ino == st.st_ino;
}

void log_init(const char *role, enum log_level level)
{
    log_role = role;
    log_set_level(level);
    to_journal = stderr_is_journal() && access(JOURNAL_SOCKET, W_OK) == 0;
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

int log_level_from_string(enum log_level *ret, const char *s)
{
    for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
        if (strcmp(s, levels[i].name) == 0) {
            *ret = (enum log_level)i;
            return 0;
        }
    return -EINVAL;
}

/* Blank what could forge a line or steer a terminal: C0, DEL, and C1 as UTF-8 writes it. */
static void scrub(char *s)
{
    for (unsigned char *p = (unsigned char *)s; *p; p++) {
        if (*p < 0x20 || *p == 0x7f)
            *p = ' ';
        else if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
            p[0] = p[1] = ' ';
    }
}

#define FIELD(s) ((struct iovec) {(s), strlen(s)})

static bool journal_write(enum log_level level, char *id, const char *text)
{
    char message[LINE_BYTES + 16], role[64], priority[16], request[96];
    struct iovec iov[4];
    int n = 0;

    snprintf(message, sizeof(message), "MESSAGE=%s", text);
    snprintf(role, sizeof(role), "SYSLOG_IDENTIFIER=%s", log_role);
    snprintf(priority, sizeof(priority), "PRIORITY=%d", levels[level].priority);
    iov[n++] = FIELD(message);
    iov[n++] = FIELD(role);
    iov[n++] = FIELD(priority);
    if (*id) {
        snprintf(request, sizeof(request), "TERN_REQUEST_ID=%s", id);
        iov[n++] = FIELD(request);
    }
    return sd_journal_sendv(iov, n) >= 0;
}

void log_write(enum log_level level, const char *request_id, const char *fmt, ...)
{
    int saved_errno = errno, n;
    char text[LINE_BYTES], id[64], line[LINE_BYTES + 256];
    va_list ap;

    if ((int)level > atomic_load_explicit(&log_level, memory_order_relaxed))
        return;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    snprintf(id, sizeof(id), "%s", request_id ? request_id : "");
    scrub(text);
    scrub(id);

    /* When the journal cannot be reached, stderr still leads there. */
    if (!to_journal || !journal_write(level, id, text)) {
        n = snprintf(line, sizeof(line), "%.64s[%d] %s: %s%s%s%s\n", log_role, (int)getpid(), levels[level].name,
                     text, *id ? " (request " : "", id, *id ? ")" : "");
        /* There is nowhere to report that stderr is gone. */
        if (write(STDERR_FILENO, line, (size_t)n) < 0)
            n = 0;
    }
    errno = saved_errno;
}
