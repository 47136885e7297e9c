/* A mailbox under load, for ThreadSanitizer: several threads post while one loop runs the mail. Every mail arrives
 * once, each sender's in its order, and the loop, which sleeps in poll(), is always woken. */
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include "base/mailbox.h"

#define SENDERS 4
#define MAILS 20000

struct note {
    struct mail mail;   /* first, so that a mail is its note */
    int sender, number;
};

static struct mailbox box;
static int next_number[SENDERS], received;
static bool failed;

static void fail(const char *what)
{
    fprintf(stderr, "FAILED: %s\n", what);
    failed = true;
}

static void note_run(struct mail *m)
{
    struct note *n = (struct note *)m;

    if (n->number != next_number[n->sender]++)
        fail("a sender's mail is lost or out of order");
    received++;
    free(n);
}

static void *send_all(void *arg)
{
    for (int i = 0; i < MAILS; i++) {
        struct note *n = malloc(sizeof(*n));
        if (!n)
            abort();
        *n = (struct note) {.mail = {.run = note_run}, .sender = (int)(intptr_t)arg, .number = i};
        mailbox_post(&box, &n->mail);
    }
    return NULL;
}

static bool readable(int timeout_msec)
{
    struct pollfd p = {.fd = box.fd, .events = POLLIN};

    return poll(&p, 1, timeout_msec) == 1;
}

static void test_senders(void)
{
    pthread_t threads[SENDERS];

    for (int i = 0; i < SENDERS; i++)
        if (pthread_create(&threads[i], NULL, send_all, (void *)(intptr_t)i) != 0)
            abort();
    while (received < SENDERS * MAILS) {
        if (!readable(20000)) {
            fail("the loop was not woken");
            exit(1);
        }
        mailbox_run(&box);
    }
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    if (readable(0))
        fail("readable although empty");
}

static int runs;

static void post_again(struct mail *m)
{
    if (++runs < 3)
        mailbox_post(&box, m);
}

/* Mail posted while mail runs waits for the next turn, so that a loop is never held. */
static void test_post_again(void)
{
    struct mail m = {.run = post_again};

    mailbox_post(&box, &m);
    for (int i = 1; i <= 3; i++) {
        if (!readable(0))
            fail("a mail posted again does not wake");
        mailbox_run(&box);
        if (runs != i)
            fail("one run, one turn");
    }
    mailbox_run(&box);
    if (runs != 3 || readable(0))
        fail("an empty mailbox ran something");
}

static void never_run(struct mail *m)
{
    fail("mailbox_done ran unread mail");
}

int main(void)
{
    struct mail unread = {.run = never_run};

    if (mailbox_init(&box) < 0)
        return 1;
    test_senders();
    test_post_again();
    mailbox_post(&box, &unread);
    mailbox_done(&box);
    if (!failed)
        printf("mailbox: %d mails from %d threads\n", received, SENDERS);
    return failed;
}
