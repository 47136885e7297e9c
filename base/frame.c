/* Frames in and out of a byte stream. The reader keeps what arrived in one buffer and walks it with `pos`; bytes of
 * frames already handed out are dropped at the next push, so a frame's data stays in place until then. The buffer's
 * cap is two whole frames: a reader drained after every push holds at most one unfinished frame and what came with
 * its end. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include "base/frame.h"

#define FILL_BYTES 65536

void frame_header(uint8_t out[FRAME_HEADER_BYTES], uint32_t type, uint64_t id, uint32_t len)
{
    memcpy(out, &type, 4);
    memcpy(out + 4, &len, 4);
    memcpy(out + 8, &id, 8);
}

int frame_append(struct buf *b, uint32_t type, uint64_t id, const void *data, size_t len)
{
    uint8_t header[FRAME_HEADER_BYTES];
    size_t before = b->len;
    int r;

    if (len > FRAME_MAX_PAYLOAD)
        return -EMSGSIZE;
    frame_header(header, type, id, (uint32_t)len);
    r = buf_append(b, header, sizeof(header));
    if (r < 0)
        return r;
    r = buf_append(b, data, len);
    if (r < 0) {
        b->len = before;
        b->data[before] = 0;
    }
    return r;
}

void frame_reader_init(struct frame_reader *r)
{
    buf_init(&r->in, 2 * ((size_t)FRAME_HEADER_BYTES + FRAME_MAX_PAYLOAD));
    r->pos = 0;
}

void frame_reader_done(struct frame_reader *r)
{
    buf_done(&r->in);
    r->pos = 0;
}

int frame_reader_push(struct frame_reader *r, const void *data, size_t len)
{
    buf_consume(&r->in, r->pos);
    r->pos = 0;
    return buf_append(&r->in, data, len);
}

int frame_reader_next(struct frame_reader *r, struct frame *ret)
{
    size_t have = r->in.len - r->pos;
    const uint8_t *p;
    struct frame f;

    if (have < FRAME_HEADER_BYTES)
        return 0;
    p = r->in.data + r->pos;
    memcpy(&f.type, p, 4);
    memcpy(&f.len, p + 4, 4);
    memcpy(&f.id, p + 8, 8);
    if (f.len > FRAME_MAX_PAYLOAD)
        return -EPROTO;
    if (have - FRAME_HEADER_BYTES < f.len)
        return 0;

    f.data = p + FRAME_HEADER_BYTES;
    r->pos += FRAME_HEADER_BYTES + f.len;
    *ret = f;
    return 1;
}

/* Wait until fd takes bytes again; a peer that is gone shows at the next send. */
static int wait_writable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};

    return poll(&p, 1, -1) < 0 && errno != EINTR ? -errno : 0;
}

int frame_send(int fd, uint32_t type, uint64_t id, const void *data, size_t len)
{
    uint8_t header[FRAME_HEADER_BYTES];
    size_t sent = 0;

    if (len > FRAME_MAX_PAYLOAD)
        return -EMSGSIZE;
    frame_header(header, type, id, (uint32_t)len);

    while (sent < sizeof(header) + len) {
        size_t h = MIN(sent, sizeof(header)), d = sent - h;
        struct iovec iov[] = {
            {header + h, sizeof(header) - h},
            {(uint8_t *)(uintptr_t)data + d, len - d},
        };
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
        ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL);

        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno == EAGAIN) {
            int r = wait_writable(fd);
            if (r < 0)
                return r;
        } else if (errno != EINTR) {
            return errno == ECONNRESET ? -EPIPE : -errno;
        }
    }
    return 0;
}

ssize_t frame_reader_fill(struct frame_reader *r, int fd)
{
    uint8_t chunk[FILL_BYTES];
    ssize_t n;
    int err;

    do
        n = read(fd, chunk, sizeof(chunk));
    while (n < 0 && errno == EINTR);
    /* A peer that died with our bytes unread resets the socket; to the caller it has closed like any other. */
    if (n < 0)
        return errno == ECONNRESET ? 0 : -errno;

    err = frame_reader_push(r, chunk, (size_t)n);
    return err < 0 ? err : n;
}
