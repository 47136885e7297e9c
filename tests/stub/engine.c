/* A stand-in engine: engine_worker_main() as engine/worker.c has it, without a model. Every request is answered with
 * one token, sure of itself, $TERN_STUB_USEC microseconds after it came (0). Linked into ternd_stub before the engine's
 * library, so that the daemon around it is the real one. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "engine/engine.h"

#define WAITING_MAX 4096

static const char ready[] = "{\"model\":\"stub\",\"digest\":\"sha256:0000000000000000000000000000000000000000000000000000"
    "000000000000\",\"context\":4096,\"vocab\":2,\"sessions\":64,\"kernels\":\"none\",\"threads\":1,\"bytes\":0,"
    "\"load_usec\":0,\"architecture\":\"stub\"}";

struct waiting { uint64_t id, due_usec; bool cancelled; };

static int answer(struct buf *out, uint64_t id)
{
    static const struct engine_token token = {
        .logprob = -0.01f, .margin = 9, .entropy = 0.01f, .piece = "Hello.", .piece_len = 6, .text = "Hello.", .text_len = 6,
    }, last = {.logprob = -0.01f, .margin = 9, .entropy = 0.01f, .piece = "", .text = ""};
    const struct engine_token *tokens[] = {&token, &last};
    struct engine_prompt prompt = {.n_tokens = 8};
    struct engine_end end = {.finish = FINISH_STOP, .n_prompt = 8, .n_tokens = 2};
    int r = frame_append(out, ENGINE_PROMPT, id, &prompt, sizeof(prompt));

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(tokens); i++) {
        cleanup(buf_done) struct buf payload = {.max = 4096};

        r = engine_token_encode(&payload, tokens[i]);
        if (r == 0)
            r = frame_append(out, ENGINE_TOKEN, id, payload.data, payload.len);
    }
    return r == 0 ? frame_append(out, ENGINE_END, id, &end, sizeof(end)) : r;
}

static int write_all(int fd, struct buf *out)
{
    size_t at = 0;

    while (at < out->len) {
        ssize_t n = write(fd, out->data + at, out->len - at);

        if (n < 0 && errno == EAGAIN)
            poll(&(struct pollfd) {.fd = fd, .events = POLLOUT}, 1, -1);
        else if (n <= 0)
            return -EPIPE;
        else
            at += (size_t)n;
    }
    buf_clear(out);
    return 0;
}

int engine_worker_main(int fd, const struct engine_config *cfg)
{
    static struct waiting line[WAITING_MAX];     /* a ring; the delay is the same for all, so it is in order of due */
    const char *delay = getenv("TERN_STUB_USEC");
    uint64_t delay_usec = delay ? strtoull(delay, NULL, 10) : 0;
    struct buf out = {.max = 64u << 20};
    size_t first = 0, end = 0;
    struct frame_reader in;
    struct frame f;

    frame_reader_init(&in);
    frame_append(&out, ENGINE_READY, 0, ready, sizeof(ready) - 1);
    while (write_all(fd, &out) == 0) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        uint64_t now = clock_usec(), left = first == end ? 0 : line[first % WAITING_MAX].due_usec;
        struct timespec wait;

        left -= MIN(left, now);
        wait = (struct timespec) {.tv_sec = (time_t)(left / USEC_PER_SEC), .tv_nsec = (long)(left % USEC_PER_SEC * 1000)};
        if (ppoll(&p, 1, first == end ? NULL : &wait, NULL) > 0 && frame_reader_fill(&in, fd) <= 0)
            break;
        while (frame_reader_next(&in, &f) == 1) {
            if (f.type == ENGINE_PING)
                frame_append(&out, ENGINE_PONG, f.id, NULL, 0);
            else if (f.type == ENGINE_START && end - first < WAITING_MAX)
                line[end++ % WAITING_MAX] = (struct waiting) {.id = f.id, .due_usec = clock_usec() + delay_usec};
            for (size_t i = first; f.type == ENGINE_CANCEL && i < end; i++)
                line[i % WAITING_MAX].cancelled |= line[i % WAITING_MAX].id == f.id;
        }
        for (now = clock_usec(); first != end && line[first % WAITING_MAX].due_usec <= now; first++) {
            const struct waiting *w = &line[first % WAITING_MAX];
            const struct engine_end cancelled = {.finish = FINISH_CANCELLED};

            if (w->cancelled)
                frame_append(&out, ENGINE_END, w->id, &cancelled, sizeof(cancelled));
            else
                answer(&out, w->id);
        }
    }
    frame_reader_done(&in);
    buf_done(&out);
    return 0;
}
