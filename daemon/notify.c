/* Words with the service manager over $NOTIFY_SOCKET; without one every call does nothing. The status line is kept in
 * the struct daemon too, where /healthz shows it. */
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include "base/clock.h"
#include "daemon/daemon.h"

void notify_ready(struct daemon *d)
{
    sd_notifyf(0, "READY=1\nSTATUS=%s", d->status);
}

/* systemd takes a READY=1 to belong to the reload whose time it follows. */
void notify_reloading(struct daemon *d)
{
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_usec());
}

void notify_stopping(struct daemon *d)
{
    sd_notifyf(0, "STOPPING=1\nSTATUS=%s", d->status);
}

void notify_status(struct daemon *d, const char *fmt, ...)
{
    char text[sizeof(d->status)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20)
            *p = ' ';                       /* a newline would start another assignment */
    if (strcmp(text, d->status) == 0)
        return;
    memcpy(d->status, text, sizeof(text));
    sd_notifyf(0, "STATUS=%s", d->status);
}

uint64_t notify_watchdog_usec(void)
{
    uint64_t usec;

    return sd_watchdog_enabled(0, &usec) > 0 ? usec / 3 : 0;
}

void notify_watchdog(void)
{
    sd_notify(0, "WATCHDOG=1");
}
