/* See process.h. */
#include <criterion/criterion.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/log.h"
#include "tests/engine/process.h"

#define WAIT_MSEC 20000

static const char *model_path(void)
{
    static char path[4096];
    const char *source = getenv("TERN_SOURCE");

    snprintf(path, sizeof(path), "%s/models/tern-nano.gguf", source ? source : ".");
    return path;
}

struct engine_config config(unsigned sessions, unsigned context)
{
    return (struct engine_config){ .model_path = model_path(), .threads = 1, .context = context, .sessions = sessions,
                                   .max_tokens = 40, .temperature = 0, .top_p = 1,
                                   .prefix_bytes = 16u << 20, .draft = true };
}

struct engine engine_start(const struct engine_config *cfg)
{
    struct engine e = { .pid = -1 };
    int fds[2], small = 1;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    /* Few frames fit the socket, so that the engine is never far ahead of the test. */
    setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    e.pid = fork();
    cr_assert_geq(e.pid, 0);
    if (e.pid == 0) {
        /* Other engines' sockets too: they end when nobody holds their other ends. */
        for (int fd = STDERR_FILENO + 1; fd < 256; fd++)
            if (fd != fds[1])
                close(fd);
        log_init("engine", LOG_LEVEL_ERROR);
        exit(engine_worker_main(fds[1], cfg));
    }
    close(fds[1]);
    e.fd = fds[0];
    frame_reader_init(&e.reader);
    return e;
}

bool next_frame(struct engine *e, struct frame *f)
{
    int r;

    while ((r = frame_reader_next(&e->reader, f)) == 0) {
        struct pollfd p = { .fd = e->fd, .events = POLLIN };
        cr_assert_eq(poll(&p, 1, WAIT_MSEC), 1, "the engine is silent");
        ssize_t n = frame_reader_fill(&e->reader, e->fd);
        cr_assert_geq(n, 0);
        if (n == 0)
            return false;
    }
    cr_assert_eq(r, 1);
    return true;
}

void send_frame(struct engine *e, uint32_t type, uint64_t id, const char *payload)
{
    cr_assert_eq(frame_send(e->fd, type, id, payload, payload ? strlen(payload) : 0), 0);
}

int wait_exit(struct engine *e)
{
    int status;

    cr_assert_eq(waitpid(e->pid, &status, 0), e->pid);
    frame_reader_done(&e->reader);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void engine_stop(struct engine *e)
{
    close(e->fd);
    cr_expect_eq(wait_exit(e), 0);
}

void expect_ready(struct engine *e)
{
    struct frame f;

    cr_assert(next_frame(e, &f));
    cr_assert_eq(f.type, ENGINE_READY, "%.*s", (int)f.len, (const char *)f.data);
}

uint32_t take(struct engine *e, struct answer *answers)
{
    struct engine_token t;
    struct answer *a;
    struct frame f;

    cr_assert(next_frame(e, &f), "the engine is gone");
    if (f.type == ENGINE_PONG)
        return f.type;
    a = &answers[f.id - 1];
    cr_assert(!a->ended && !a->refused, "a frame after the end");
    switch (f.type) {
    case ENGINE_PROMPT:
        cr_assert_eq(f.len, sizeof(struct engine_prompt));
        memcpy(&a->prompt, f.data, sizeof(a->prompt));
        a->n_prompts++;
        break;
    case ENGINE_TOKEN:
        cr_assert_eq(engine_token_decode(&t, f.data, f.len), 0);
        cr_assert(a->n_prompts == 1 && a->n < 512);
        if (!a->n)
            a->first = t;
        a->ids[a->n] = t.id;
        a->logprobs[a->n++] = t.logprob;
        a->sum_logprob += (double)t.logprob;
        strncat(t.channel == ANSWER_TEXT ? a->text : t.channel == ANSWER_TOOL_NAME ? a->name : a->arguments, t.text,
                t.text_len);
        break;
    case ENGINE_END:
        cr_assert_eq(f.len, sizeof(a->end));
        memcpy(&a->end, f.data, sizeof(a->end));
        a->ended = true;
        break;
    case ENGINE_REFUSED: {
        json_t *j = json_loadb((const char *)f.data, f.len, 0, NULL);
        snprintf(a->code, sizeof(a->code), "%s", json_string_value(json_object_get(j, "code")));
        snprintf(a->message, sizeof(a->message), "%s", json_string_value(json_object_get(j, "message")));
        json_decref(j);
        a->refused = true;
        break;
    }
    default:
        cr_assert_fail("frame of type %u", f.type);
    }
    return f.type;
}

void finish(struct engine *e, struct answer *answers, size_t n)
{
    for (size_t i = 0; i < n; i++)
        while (!answers[i].ended && !answers[i].refused)
            take(e, answers);
}

char *payload(const char *user, const char *more)
{
    json_t *text = json_string(user);
    char *quoted = json_dumps(text, JSON_ENCODE_ANY), *s;

    if (asprintf(&s, "{\"messages\":[{\"role\":\"user\",\"content\":%s}]%s}", quoted, more) < 0)
        abort();
    json_decref(text);
    free(quoted);
    return s;
}

void start(struct engine *e, uint64_t id, const char *user, const char *more)
{
    cleanup(freep) char *s = payload(user, more);

    send_frame(e, ENGINE_START, id, s);
}

struct answer ask(struct engine *e, const char *user, const char *more)
{
    struct answer a = { 0 };

    start(e, 1, user, more);
    finish(e, &a, 1);
    return a;
}
