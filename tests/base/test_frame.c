/* Frames: a stream cut anywhere gives the same frames, a hostile length is refused before memory is spent on it, and
 * the two blocking helpers on real socketpairs. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "base/frame.h"

static const struct { uint32_t type; uint64_t id; const char *text; } sent[] = {
    {1, 0, ""}, {0xffffffff, UINT64_MAX, "x"}, {7, 42, "a payload of some length"}, {8, 43, ""}, {9, 44, "end"},
};

static void stream_make(struct buf *b)
{
    buf_init(b, 4096);
    for (size_t i = 0; i < ARRAY_SIZE(sent); i++)
        cr_assert_eq(frame_append(b, sent[i].type, sent[i].id, sent[i].text, strlen(sent[i].text)), 0);
}

static void check(const struct frame *f, size_t i)
{
    cr_assert_lt(i, ARRAY_SIZE(sent));
    cr_assert_eq(f->type, sent[i].type);
    cr_assert_eq(f->id, sent[i].id);
    cr_assert_eq(f->len, strlen(sent[i].text));
    cr_assert_eq(memcmp(f->data, sent[i].text, f->len), 0);
}

/* Push [from, to) and take every whole frame. */
static void feed(struct frame_reader *r, const struct buf *b, size_t from, size_t to, size_t *n)
{
    struct frame f;

    cr_assert_eq(frame_reader_push(r, b->data + from, to - from), 0);
    while (frame_reader_next(r, &f) > 0)
        check(&f, (*n)++);
}

Test(frame, split_at_every_byte)
{
    cleanup(buf_done) struct buf b = {0};

    stream_make(&b);
    for (size_t cut = 0; cut <= b.len; cut++) {
        cleanup(frame_reader_done) struct frame_reader r;
        size_t n = 0;
        frame_reader_init(&r);
        feed(&r, &b, 0, cut, &n);
        feed(&r, &b, cut, b.len, &n);
        cr_assert_eq(n, ARRAY_SIZE(sent), "cut at %zu", cut);
    }
}

Test(frame, byte_by_byte)
{
    cleanup(buf_done) struct buf b = {0};
    cleanup(frame_reader_done) struct frame_reader r;
    size_t n = 0;

    stream_make(&b);
    frame_reader_init(&r);
    for (size_t i = 0; i < b.len; i++)
        feed(&r, &b, i, i + 1, &n);
    cr_assert_eq(n, ARRAY_SIZE(sent));
}

Test(frame, hostile_length)
{
    static const uint32_t lengths[] = {FRAME_MAX_PAYLOAD + 1, 0x7fffffff, 0x80000000, 0xffffffff};

    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        cleanup(frame_reader_done) struct frame_reader r;
        uint8_t header[FRAME_HEADER_BYTES];
        struct frame f = {.type = 5};

        frame_reader_init(&r);
        frame_header(header, 1, 2, lengths[i]);
        cr_assert_eq(frame_reader_push(&r, header, sizeof(header) - 1), 0);
        cr_assert_eq(frame_reader_next(&r, &f), 0);
        cr_assert_eq(frame_reader_push(&r, header + sizeof(header) - 1, 1), 0);
        cr_assert_eq(frame_reader_next(&r, &f), -EPROTO);
        cr_assert_eq(frame_reader_next(&r, &f), -EPROTO);
        cr_assert_eq(f.type, 5);
    }
}

Test(frame, an_undrained_reader_has_a_cap)
{
    cleanup(frame_reader_done) struct frame_reader r;
    cleanup(freep) char *zeros = calloc(1, 1 << 20);
    int x = 0, pushes = 0;

    frame_reader_init(&r);
    while (x == 0 && pushes++ < 1000)
        x = frame_reader_push(&r, zeros, 1 << 20);
    cr_assert_eq(x, -EMSGSIZE);
    cr_assert_eq(pushes, 65);
}

Test(frame, append_that_does_not_fit_leaves_nothing)
{
    cleanup(buf_done) struct buf b;

    buf_init(&b, FRAME_HEADER_BYTES + 10);
    cr_assert_eq(frame_append(&b, 1, 1, "12345678901", 11), -EMSGSIZE);
    cr_assert_eq(b.len, 0);
    cr_assert_eq(frame_append(&b, 1, 1, "1234567890", 10), 0);
    cr_assert_eq(frame_append(&b, 1, 1, "", FRAME_MAX_PAYLOAD + 1ul), -EMSGSIZE);
    cr_assert_eq(b.len, FRAME_HEADER_BYTES + 10);
}

/* The largest frame through a non-blocking socketpair into a reader in another process. */
Test(frame, largest_frame_over_a_socket)
{
    cleanup(freep) uint8_t *big = malloc(FRAME_MAX_PAYLOAD);
    int sv[2], status;
    pid_t pid;

    for (size_t i = 0; i < FRAME_MAX_PAYLOAD; i++)
        big[i] = (uint8_t)(i * 7 + i / 251);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    pid = fork();
    if (pid == 0) {
        struct frame_reader r;
        struct frame f;
        close(sv[0]);
        frame_reader_init(&r);
        while (frame_reader_next(&r, &f) == 0)
            if (frame_reader_fill(&r, sv[1]) <= 0)
                _exit(1);
        _exit(f.len == FRAME_MAX_PAYLOAD && f.type == 3 && f.id == 9 && !memcmp(f.data, big, f.len) ? 0 : 2);
    }
    close(sv[1]);
    cr_assert_eq(fcntl(sv[0], F_SETFL, O_NONBLOCK), 0);
    cr_assert_eq(frame_send(sv[0], 3, 9, big, FRAME_MAX_PAYLOAD), 0);
    waitpid(pid, &status, 0);
    cr_assert_eq(status, 0);
    cr_assert_eq(frame_send(sv[0], 3, 9, big, FRAME_MAX_PAYLOAD + 1ul), -EMSGSIZE);
    close(sv[0]);
}

Test(frame, peer_gone)
{
    cleanup(frame_reader_done) struct frame_reader r;
    int sv[2];

    frame_reader_init(&r);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0);
    cr_assert_eq(frame_reader_fill(&r, sv[0]), -EAGAIN);
    cr_assert_eq(frame_send(sv[0], 1, 1, "unread", 6), 0);
    close(sv[1]);
    /* The reset for the unread bytes first, then the plain end. */
    cr_assert_eq(frame_reader_fill(&r, sv[0]), 0);
    cr_assert_eq(frame_reader_fill(&r, sv[0]), 0);
    cr_assert_eq(frame_send(sv[0], 1, 1, "x", 1), -EPIPE);
    close(sv[0]);
    cr_assert_eq(frame_reader_fill(&r, sv[0]), -EBADF);
}
