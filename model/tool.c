/* What the verbs of tern-model share. */
#include "model/tool.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"

const char *const projections[N_PROJECTIONS] = { "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                                                 "ffn_down" };

int usage_error(const struct verb *v, const char *fmt, ...)
{
    va_list args;

    fprintf(stderr, "tern-model %s: ", v->name);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\nUsage: tern-model %s %s\n", v->name, v->arguments);
    return TOOL_USAGE;
}

int failure(int r, const struct err *err)
{
    fputs("tern-model: ", stderr);
    /* Names from a hostile file must not move a terminal's cursor. */
    for (const char *c = err && err->msg[0] ? err->msg : strerror(-r); *c; c++)
        fputc((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c, stderr);
    fputc('\n', stderr);
    return TOOL_FAILED;
}

int parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
    char *end;
    uint64_t v;

    errno = 0;
    v = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || v < min || v > max)
        return -EINVAL;
    *ret = v;
    return 0;
}

bool is_projection(struct gguf_string tensor)
{
    char name[72], want[72];
    unsigned layer;
    int end = 0;

    snprintf(name, sizeof(name), "%.*s", (int)MIN(tensor.len, 64), tensor.data);
    if (sscanf(name, "blk.%5u.%n", &layer, &end) != 1 || !end)
        return false;
    for (size_t i = 0; i < N_PROJECTIONS; i++) {
        snprintf(want, sizeof(want), "%s.weight", projections[i]);
        if (!strcmp(name + end, want))
            return true;
    }
    return false;
}

/* ---- progress --------------------------------------------------------------------------------------------------- */

void progress_begin(struct progress *p, const char *what)
{
    *p = (struct progress){ .what = what, .started_usec = clock_usec() };
}

void progress_show(struct progress *p, double share, const char *more)
{
    uint64_t now = clock_usec();

    if (now - p->started_usec < USEC_PER_SEC || now - p->shown_usec < 100 * USEC_PER_MSEC || !isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r\033[K%s %3.0f %%%s", p->what, 100 * share, more);
    p->shown_usec = now;
    p->shown = true;
}

void progress_end(struct progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
}
