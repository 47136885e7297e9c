/* The one way into a loop from another thread: post a callback, the loop runs it. An eventfd tells the loop.
 * Posts never block and never fail once the node is the caller's: embed a struct mail in what is posted. */
#pragma once

#include <pthread.h>
#include "base/util.h"

struct mail {
    void (*run)(struct mail *m);   /* called on the loop's thread; m may be freed or posted again inside */
    struct mail *next;             /* the mailbox's while posted */
};

struct mailbox {
    pthread_mutex_t lock;
    struct mail *head, *tail;
    int fd;                        /* eventfd, readable while mail waits; the loop watches it */
};

int mailbox_init(struct mailbox *mb);             /* 0 or -errno */
void mailbox_done(struct mailbox *mb);            /* drops unread mail without running it */
void mailbox_post(struct mailbox *mb, struct mail *m);  /* any thread; borrows m until it runs */
void mailbox_run(struct mailbox *mb);             /* the loop's thread, when fd is readable: runs, in order, what was there */
