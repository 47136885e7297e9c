/* What the files of stub_cloud share. */
#pragma once

#include <openssl/ssl.h>
#include "base/buf.h"
#include "base/json.h"

struct conn {
    int fd;
    SSL *ssl;
    unsigned number, seq;
    struct buf in;             /* bytes read and not yet taken */
    bool failed;               /* a write failed or the client left: nothing more is written */
};

struct request {
    char method[16], path[256], mode[128];
    json_t *headers;           /* lower-case names */
    json_t *body;              /* NULL when it was not JSON */
    const uint8_t *bytes;      /* the body as it came, inside conn.in */
    size_t head_len, body_len;
};

const char *header(const struct request *q, const char *name);          /* "" when it was not sent */
bool mode_is(const struct request *q, const char *name, int *n);        /* *n: its number, or what it holds already */
const char *request_model(const struct request *q);
bool stream_wanted(const struct request *q);

void conn_write(struct conn *c, const void *data, size_t len);
void conn_wait(struct conn *c, int msec);                               /* a client that leaves ends the answer */
void answer_json(struct conn *c, int status, const char *extra, json_t *j /* taken */);
void stream_begin(struct conn *c);
void stream_end(struct conn *c);
size_t word_len(const char *s);            /* of the next word with the spaces before it; 0 at the end */
int words_in(const char *s);

/* ---- anthropic.c ------------------------------------------------------------------------------------------------- */
/* The same request as a chat completion's, new reference; NULL with *ret_why: Anthropic would refuse it. */
json_t *anthropic_read(const struct request *q, const char **ret_why);
void anthropic_error(struct conn *c, int status, const char *extra, const char *type, const char *message);
/* Words, or calls in OpenAI's shape, in the ways that the mode says. */
void anthropic_say(struct conn *c, const struct request *q, const char *text, const json_t *calls);
