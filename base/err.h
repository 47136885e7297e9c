/* The words that go with an error code. A function that may have something to tell a person takes a
 * `struct err *` last (NULL is allowed) and fills it where the fault is found; callers pass it up unchanged.
 * Never holds prompt text, keys or other request content. */
#pragma once

#include "base/util.h"

struct err {
    char msg[512];
};

/* Format `fmt` into err->msg (truncated to fit; no-op when err is NULL) and return `code` unchanged, so that a
 * fault reads as one line: return err_set(err, -EINVAL, "%s: bad magic", path); */
int err_set(struct err *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
