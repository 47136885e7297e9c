/* Messages between the roles of ternd, on an AF_UNIX stream socketpair. Both ends are the same executable, so the
 * header is in host order:
 *
 *     u32 type | u32 length of payload | u64 request id (0: about the worker itself) | payload
 *
 * What a payload holds is told beside the type (engine/engine.h, router/egress.h). This file frames bytes and does no
 * waiting; frame_send() is for workers that may block on their one socket. */
#pragma once

#include "base/buf.h"

#define FRAME_HEADER_BYTES 16
#define FRAME_MAX_PAYLOAD (32u << 20)

struct frame {
    uint32_t type;
    uint32_t len;
    uint64_t id;
    const uint8_t *data;   /* len bytes inside the reader, valid until the next frame_reader call; then a NUL byte is NOT guaranteed */
};

/* Write the header for a payload of len bytes into out. */
void frame_header(uint8_t out[FRAME_HEADER_BYTES], uint32_t type, uint64_t id, uint32_t len);

/* Append a whole frame to b. 0, -ENOMEM, -EMSGSIZE. */
int frame_append(struct buf *b, uint32_t type, uint64_t id, const void *data, size_t len);

/* Turns a byte stream back into frames. */
struct frame_reader { struct buf in; size_t pos; };
void frame_reader_init(struct frame_reader *r);
void frame_reader_done(struct frame_reader *r);
int frame_reader_push(struct frame_reader *r, const void *data, size_t len);   /* 0, -ENOMEM, -EMSGSIZE */
int frame_reader_next(struct frame_reader *r, struct frame *ret);  /* 1: *ret is a whole frame, 0: more bytes needed, -EPROTO: a length over FRAME_MAX_PAYLOAD */

/* Blocking helpers for a worker: send a whole frame (writes until done, poll() on EAGAIN; 0 or -errno, -EPIPE when the
 * peer is gone), and read what is there into the reader (>0 bytes, 0 peer closed, -EAGAIN nothing there, else -errno). */
int frame_send(int fd, uint32_t type, uint64_t id, const void *data, size_t len);
ssize_t frame_reader_fill(struct frame_reader *r, int fd);
