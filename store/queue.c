/* How jobs travel: a queue to each thread and one outbox back to the loop.
 *
 * The outbox posts one mail however many jobs wait in it, so the loop is woken once for a whole batch. Its lock is
 * taken before the mailbox's, never the other way round. When the store closes while the loop is inside
 * mailbox_run(), our mail may already have left the mailbox without having run: then the outbox stays, closed, and
 * that mail frees it. */
#include <time.h>
#include "base/clock.h"
#include "store/internal.h"

void job_list_add(struct job_list *l, struct job *j)
{
    j->next = NULL;
    if (l->tail)
        l->tail->next = j;
    else
        l->head = j;
    l->tail = j;
    l->n++;
}

void job_list_append(struct job_list *l, struct job_list *more)
{
    if (!more->head)
        return;
    if (l->tail)
        l->tail->next = more->head;
    else
        l->head = more->head;
    l->tail = more->tail;
    l->n += more->n;
    *more = (struct job_list) {0};
}

static struct job *job_list_pop(struct job_list *l)
{
    struct job *j = l->head;

    if (j) {
        l->head = j->next;
        if (!l->head)
            l->tail = NULL;
        l->n--;
    }
    return j;
}

static void job_list_drop(struct job_list *l)
{
    struct job *j;

    while ((j = job_list_pop(l)))
        j->finish(j, false);
}

void queue_init(struct queue *q)
{
    pthread_condattr_t attr;

    *q = (struct queue) {0};
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&q->wake, &attr);
    pthread_condattr_destroy(&attr);
}

void queue_done(struct queue *q)
{
    job_list_drop(&q->jobs);
    pthread_cond_destroy(&q->wake);
    pthread_mutex_destroy(&q->lock);
}

void queue_push(struct queue *q, struct job_list *jobs, bool lazy)
{
    bool was_empty, wake;

    if (!jobs->head && lazy)
        return;
    pthread_mutex_lock(&q->lock);
    was_empty = !q->jobs.head;
    if (!lazy)
        q->due_usec = 0;
    else if (was_empty)
        q->due_usec = clock_usec() + QUEUE_LAZY_USEC;
    job_list_append(&q->jobs, jobs);
    wake = q->waiting && q->jobs.head && (was_empty || !lazy);
    pthread_mutex_unlock(&q->lock);
    if (wake)
        pthread_cond_signal(&q->wake);
}

unsigned queue_length(struct queue *q)
{
    unsigned n;

    pthread_mutex_lock(&q->lock);
    n = q->jobs.n;
    pthread_mutex_unlock(&q->lock);
    return n;
}

void queue_stop(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->stop = true;
    pthread_cond_signal(&q->wake);
    pthread_mutex_unlock(&q->lock);
}

bool queue_take(struct queue *q, struct job_list *ret, unsigned max, uint64_t until_usec)
{
    struct job_list taken = {0};
    uint64_t now = clock_usec();
    bool more;

    pthread_mutex_lock(&q->lock);
    while (!q->stop && now < (q->jobs.head ? MIN(until_usec, q->due_usec) : until_usec)) {
        uint64_t end = q->jobs.head ? MIN(until_usec, q->due_usec) : until_usec;
        struct timespec t = {end / USEC_PER_SEC, end % USEC_PER_SEC * 1000};

        q->waiting = true;
        pthread_cond_timedwait(&q->wake, &q->lock, &t);
        q->waiting = false;
        now = clock_usec();
    }
    more = q->jobs.head || !q->stop;
    while (taken.n < max && q->jobs.head)
        job_list_add(&taken, job_list_pop(&q->jobs));
    pthread_mutex_unlock(&q->lock);

    *ret = taken;
    return more;
}

struct outbox {
    struct mail mail;              /* first, so that the mail's address is the outbox's */
    struct mailbox *mailbox;
    pthread_mutex_t lock;
    struct job_list jobs;
    bool posted;                   /* our mail is in the mailbox or about to run */
    bool running, closed;          /* the loop's own */
};

static void outbox_destroy(struct outbox *o)
{
    pthread_mutex_destroy(&o->lock);
    free(o);
}

static void outbox_run(struct mail *m)
{
    struct outbox *o = (struct outbox *)m;
    struct job_list jobs;
    struct job *j;

    pthread_mutex_lock(&o->lock);
    jobs = o->jobs;
    o->jobs = (struct job_list) {0};
    o->posted = false;
    pthread_mutex_unlock(&o->lock);

    /* A callback may close the store: the rest is then dropped, and the outbox is ours to free. */
    o->running = true;
    while ((j = job_list_pop(&jobs)))
        j->finish(j, !o->closed);
    o->running = false;
    if (o->closed)
        outbox_destroy(o);
}

struct outbox *outbox_new(struct mailbox *mailbox)
{
    struct outbox *o = calloc(1, sizeof(*o));

    if (!o)
        return NULL;
    o->mail.run = outbox_run;
    o->mailbox = mailbox;
    pthread_mutex_init(&o->lock, NULL);
    return o;
}

void outbox_post(struct outbox *o, struct job_list *jobs)
{
    pthread_mutex_lock(&o->lock);
    job_list_append(&o->jobs, jobs);
    if (!o->posted) {
        o->posted = true;
        mailbox_post(o->mailbox, &o->mail);
    }
    pthread_mutex_unlock(&o->lock);
}

/* Take our mail back out of the mailbox: false when it is not there. */
static bool mail_withdraw(struct mailbox *mb, struct mail *mail)
{
    struct mail *prev = NULL;
    bool found = false;

    pthread_mutex_lock(&mb->lock);
    for (struct mail *m = mb->head; m && !found; prev = m, m = m->next) {
        if (m != mail)
            continue;
        found = true;
        if (prev)
            prev->next = m->next;
        else
            mb->head = m->next;
        if (mb->tail == m)
            mb->tail = prev;
    }
    pthread_mutex_unlock(&mb->lock);
    return found;
}

void outbox_free(struct outbox *o)
{
    if (!o)
        return;
    job_list_drop(&o->jobs);
    if (o->posted && mail_withdraw(o->mailbox, &o->mail))
        o->posted = false;
    if (!o->posted && !o->running)
        outbox_destroy(o);
    else
        o->closed = true;
}
