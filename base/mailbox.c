/* A list under a lock, and an eventfd that is readable exactly while the list is not empty: both change together, under
 * the lock, so a post is never missed and the loop is woken once for many. */
#include <errno.h>
#include <sys/eventfd.h>
#include "base/mailbox.h"

int mailbox_init(struct mailbox *mb)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (fd < 0)
        return -errno;
    *mb = (struct mailbox) {.fd = fd};
    pthread_mutex_init(&mb->lock, NULL);
    return 0;
}

void mailbox_done(struct mailbox *mb)
{
    close(mb->fd);
    pthread_mutex_destroy(&mb->lock);
    *mb = (struct mailbox) {.fd = -1};
}

void mailbox_post(struct mailbox *mb, struct mail *m)
{
    m->next = NULL;
    pthread_mutex_lock(&mb->lock);
    if (mb->tail) {
        mb->tail->next = m;
    } else {
        mb->head = m;
        eventfd_write(mb->fd, 1);
    }
    mb->tail = m;
    pthread_mutex_unlock(&mb->lock);
}

void mailbox_run(struct mailbox *mb)
{
    struct mail *m;
    eventfd_t count;

    pthread_mutex_lock(&mb->lock);
    m = mb->head;
    mb->head = mb->tail = NULL;
    eventfd_read(mb->fd, &count);
    pthread_mutex_unlock(&mb->lock);

    while (m) {
        struct mail *next = m->next;
        m->run(m);
        m = next;
    }
}
