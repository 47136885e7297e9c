/* A worker's socket in the loop: frames in through a frame_reader, frames out through a bufferevent, a ping each
 * second. A worker that says nonsense, or does not read what it was sent, is hung up on: its supervisor starts
 * another. */
#include <errno.h>
#include <string.h>
#include <event2/buffer.h>
#include "base/clock.h"
#include "base/log.h"
#include "router/internal.h"

#define READ_BYTES 65536
#define OUTPUT_MAX_BYTES (2 * (size_t)FRAME_MAX_PAYLOAD)
#define PINGS_MAX_BYTES 4096           /* with more than this waiting to be written, another ping tells nothing new */

static void link_close(struct link *l)
{
    if (l->bev)
        bufferevent_free(l->bev);
    l->bev = NULL;
    frame_reader_done(&l->in);
    event_del(&l->ping);
}

static void link_down(struct link *l)
{
    link_close(l);
    l->on_down(l->router, false);
}

/* Hand on every whole frame. A handler may close the link, or attach another worker; then what is left is not looked
 * at. */
static int frames_take(struct link *l, const struct bufferevent *bev)
{
    struct frame f;
    int r;

    while (l->bev == bev && (r = frame_reader_next(&l->in, &f)) != 0) {
        if (r < 0)
            return r;
        l->beat_usec = clock_usec();
        r = l->on_frame(l->router, &f);
        if (r < 0)
            return r;
    }
    return 0;
}

static void on_readable(struct bufferevent *bev, void *arg)
{
    struct link *l = arg;
    char chunk[READ_BYTES];
    size_t n;
    int r = 0;

    while (r == 0 && l->bev == bev && (n = bufferevent_read(bev, chunk, sizeof(chunk))) > 0) {
        r = frame_reader_push(&l->in, chunk, n);
        if (r == 0)
            r = frames_take(l, bev);
    }
    if (r < 0 && l->bev == bev) {
        log_error("a worker sent what is not a frame of ours: %s", strerror(-r));
        link_down(l);
    }
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    struct link *l = arg;

    /* What the worker said before it died counts. */
    on_readable(bev, l);
    if (l->bev == bev)
        link_down(l);
}

static void on_ping(evutil_socket_t fd, short what, void *arg)
{
    struct link *l = arg;

    if (evbuffer_get_length(bufferevent_get_output(l->bev)) < PINGS_MAX_BYTES)
        link_send(l, l->ping_type, 0, NULL, 0);
}

void link_init(struct link *l, struct router *r, struct event_base *base, uint32_t ping_type,
               int (*on_frame)(struct router *, const struct frame *), void (*on_down)(struct router *, bool))
{
    *l = (struct link) {.base = base, .ping_type = ping_type, .on_frame = on_frame, .on_down = on_down, .router = r};
    event_assign(&l->ping, base, -1, EV_PERSIST, on_ping, l);
}

void link_done(struct link *l)
{
    link_close(l);
}

int link_attach(struct link *l, int fd)
{
    struct bufferevent *bev;

    evutil_make_socket_nonblocking(fd);
    bev = bufferevent_socket_new(l->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!bev) {
        close(fd);
        return -ENOMEM;
    }
    if (l->bev) {
        link_close(l);
        l->on_down(l->router, true);
    }

    l->bev = bev;
    l->beat_usec = clock_usec();
    frame_reader_init(&l->in);
    bufferevent_setcb(bev, on_readable, NULL, on_event, l);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    event_add(&l->ping, &(struct timeval) {.tv_sec = 1});
    return 0;
}

int link_send(struct link *l, uint32_t type, uint64_t id, const void *data, size_t len)
{
    uint8_t header[FRAME_HEADER_BYTES];
    struct evbuffer *out;

    if (!l->bev)
        return -ENOTCONN;
    if (len > FRAME_MAX_PAYLOAD)
        return -EMSGSIZE;
    out = bufferevent_get_output(l->bev);
    if (len && evbuffer_get_length(out) + len > OUTPUT_MAX_BYTES)
        return -ENOBUFS;

    /* Room first, so that half a frame is never queued. */
    if (evbuffer_expand(out, sizeof(header) + len) < 0)
        return -ENOMEM;
    frame_header(header, type, id, (uint32_t)len);
    evbuffer_add(out, header, sizeof(header));
    evbuffer_add(out, data, len);
    return 0;
}
