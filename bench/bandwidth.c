/* The memory's read bandwidth, by the pattern that reads it fastest. A child process holds the buffer and answers over a
 * socketpair: a question is a number of threads, the answer a struct. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "bench/bench.h"

#define BUFFER_BYTES ((size_t)512 << 20)
#define HUGE_PAGE ((size_t)2 << 20)
#define MAX_THREADS 64
#define CHUNK 256               /* bytes of a stream at a time */

static const struct pattern { unsigned streams, ahead; } patterns[] = {
    { 1, 0 }, { 1, 1024 }, { 1, 2048 }, { 2, 1024 }, { 2, 2048 }, { 4, 0 }, { 4, 512 }, { 4, 1024 }, { 4, 2048 },
    { 8, 512 }, { 8, 1024 }, { 8, 2048 },
};

struct answer { double bytes_per_second; unsigned pattern; };

struct bandwidth {
    int fd;
    pid_t pid;
    char text[48];
    unsigned best[MAX_THREADS + 1];      /* pattern that answered last, by threads */
};

/* ---- in the child ------------------------------------------------------------------------------------------------ */

struct reader {
    const uint8_t *from;
    size_t bytes;
    struct pattern pattern;
    uint64_t sum;               /* so that the reads are done */
};

static void *read_part(void *arg)
{
    struct reader *r = arg;
    size_t each = r->bytes / r->pattern.streams / CHUNK * CHUNK;
    uint64_t sums[4] = { 0 };

    for (size_t i = 0; i < each; i += CHUNK)
        for (unsigned s = 0; s < r->pattern.streams; s++) {
            const uint64_t *p = (const uint64_t *)(const void *)(r->from + s * each + i);

            for (size_t k = 0; r->pattern.ahead && k < CHUNK; k += 64)
                __builtin_prefetch((const uint8_t *)p + r->pattern.ahead + k);
            /* One word a cache line is enough to fetch it. */
            for (size_t k = 0; k < CHUNK / 64; k++)
                sums[k % 4] += p[8 * k];
        }
    r->sum = sums[0] + sums[1] + sums[2] + sums[3];
    return NULL;
}

static double read_all(const uint8_t *buffer, unsigned threads, struct pattern pattern)
{
    struct reader readers[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    size_t part = BUFFER_BYTES / threads / CHUNK * CHUNK;
    uint64_t begin = clock_usec();
    unsigned started = 0;

    for (unsigned t = 0; t < threads; t++)
        readers[t] = (struct reader){ .from = buffer + t * part, .bytes = part, .pattern = pattern };
    for (unsigned t = 1; t < threads && !pthread_create(&ids[t], NULL, read_part, &readers[t]); t++)
        started = t;
    read_part(&readers[0]);
    for (unsigned t = 1; t <= started; t++)
        pthread_join(ids[t], NULL);
    return (double)part * (started + 1) / (double)MAX(clock_usec() - begin, 1u) * 1e6;
}

static void serve(int fd)
{
    unsigned best[MAX_THREADS + 1];
    uint8_t *buffer = mmap(NULL, BUFFER_BYTES + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned threads;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memset(best, 0xff, sizeof(best));
    if (buffer == MAP_FAILED)
        return;
    buffer += -(uintptr_t)buffer % HUGE_PAGE;
    madvise(buffer, BUFFER_BYTES, MADV_HUGEPAGE);
    memset(buffer, 1, BUFFER_BYTES);
    while (read(fd, &threads, sizeof(threads)) == sizeof(threads) && threads >= 1 && threads <= MAX_THREADS) {
        struct answer a = { 0 };

        if (best[threads] == UINT32_MAX)
            for (unsigned i = 0; i < 3 * ARRAY_SIZE(patterns); i++) {
                double now = read_all(buffer, threads, patterns[i % ARRAY_SIZE(patterns)]);

                if (now > a.bytes_per_second)
                    a = (struct answer){ now, best[threads] = i % ARRAY_SIZE(patterns) };
            }
        a = (struct answer){ read_all(buffer, threads, patterns[best[threads]]), best[threads] };
        if (write(fd, &a, sizeof(a)) != sizeof(a))
            return;
    }
}

/* ---- in the parent ----------------------------------------------------------------------------------------------- */

int bandwidth_start(struct bandwidth **ret, struct err *err)
{
    struct bandwidth *b = calloc(1, sizeof(*b));
    int pair[2];

    if (!b)
        return -ENOMEM;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        free(b);
        return err_set(err, -errno, "socketpair: %s", strerror(errno));
    }
    b->pid = fork();
    if (b->pid == 0) {
        close(pair[0]);
        serve(pair[1]);
        _exit(0);
    }
    close(pair[1]);
    b->fd = pair[0];
    if (b->pid < 0) {
        int r = err_set(err, -errno, "fork: %s", strerror(errno));

        bandwidth_stop(b);
        return r;
    }
    *ret = b;
    return 0;
}

void bandwidth_stop(struct bandwidth *b)
{
    if (!b)
        return;
    close(b->fd);
    if (b->pid > 0)
        waitpid(b->pid, NULL, 0);
    free(b);
}

double bandwidth_measure(struct bandwidth *b, unsigned threads)
{
    struct answer a;

    threads = MIN(MAX(threads, 1u), MAX_THREADS);
    if (send(b->fd, &threads, sizeof(threads), MSG_NOSIGNAL) != sizeof(threads) || read(b->fd, &a, sizeof(a)) != sizeof(a))
        return 0;
    b->best[threads] = a.pattern;
    return a.bytes_per_second;
}

const char *bandwidth_pattern(struct bandwidth *b, unsigned threads)
{
    const struct pattern *p = &patterns[b->best[MIN(MAX(threads, 1u), MAX_THREADS)]];

    snprintf(b->text, sizeof(b->text), "%u streams, prefetch %u", p->streams, p->ahead);
    return b->text;
}
