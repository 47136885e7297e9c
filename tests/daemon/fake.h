/* A front on real sockets with a scripted router, store and supervisor behind it, all in one thread: the test's client
 * and the server's loop take turns in pump(). What the router does with a request is told by its last user message;
 * see fake.c. */
#pragma once

#include <event2/event.h>
#include "daemon/http.h"

#define FAKE_ID "01ARZ3NDEKTSV4RRFFQ69G5FAV"
#define FAKE_CREATED 1700000000

struct fake {
    struct daemon d;
    int port;
    char unix_path[108];

    /* What the router saw. */
    unsigned started, cancelled, running, pauses, resumes;
    size_t sent;                           /* bytes of deltas */
    size_t most_queued;                    /* in any one connection, seen after each delta */
    char key[64], label[64], mode[64], peer[64], model[64], dialect[64], content[256];
    int key_label;                         /* -1: none */
    uint64_t deadline_usec;
    struct chat_params params;
    json_t *chat;                          /* the last request as chat_request_to_json() tells it, or its input */
    enum chat_task task;

    /* What the others say. */
    bool engine_ready, store_healthy, store_late;   /* late: answers only at fake_store_answer() */
    const char *store_result;              /* JSON, or NULL for a fault */
    struct store_query query;              /* the last question; its strings copied below */
    char query_text[512];
};
extern struct fake fake;

/* `change` may alter the configuration before the server starts. */
void fake_start(void (*change)(struct config *c));
void fake_stop(void);
void fake_store_answer(void);

/* A client. pump() runs the loop for a moment. */
void pump(void);
int dial(void);
int dial_unix(void);
void put(int fd, const char *bytes, size_t len);
/* A whole POST of `body` to the chat path, with more header lines ("x: y\r\n"). */
void put_chat(int fd, const char *more_headers, const char *body);
/* Everything until the server closes, `until` appears, or `msec` passed. Caller frees; *ret_closed may be NULL. */
char *get(int fd, const char *until, unsigned msec, size_t *ret_len, bool *ret_closed);
/* One whole exchange on a new connection; the status, or 0 when none came. *ret, if not NULL, is the answer, caller
 * frees. */
int exchange(const char *request, char **ret);
/* put_chat() on a new connection, which closes after the answer; as exchange(). */
int chat(const char *more_headers, const char *body, char **ret);
/* The same to another path; `body` has single quotes for double ones. */
int post(const char *path, const char *body, char **ret);
/* A JSON text with single quotes for double ones; new reference. */
json_t *json_of(const char *text);
/* Fails the test unless both are equal; takes both. */
void json_same(json_t *got, json_t *wanted, const char *what);
const char *body_of(const char *answer);
/* A header's value in static memory, or NULL. */
const char *header_of(const char *answer, const char *name);
/* The body without its chunks, in place. */
char *dechunk(char *answer);
