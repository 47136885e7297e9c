/* Logging for the roles of ternd. One line an event to stderr, or structured to the journal when $JOURNAL_STREAM
 * names our stderr. Control characters (CR, LF, ESC, ...) are replaced by spaces before anything is written.
 * Only daemon and router (and the workers' mains) log; libraries return errors. Never pass request text. */
#pragma once

#include "base/util.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_NOTICE, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Set the role shown before each line ("ternd", "engine", "egress") and the lowest level printed. Decides between
 * stderr and the journal. Call once before threads start; the default is "tern" at LOG_LEVEL_INFO on stderr. */
void log_init(const char *role, enum log_level level);
void log_set_level(enum log_level level);
int log_level_from_string(enum log_level *ret, const char *s);   /* 0, or -EINVAL */

/* `request_id` may be NULL; when given it is shown and sent to the journal as TERN_REQUEST_ID. Thread-safe. */
void log_write(enum log_level level, const char *request_id, const char *fmt, ...) PRINTF_LIKE(3, 4);

#define log_error(...)   log_write(LOG_LEVEL_ERROR, NULL, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, NULL, __VA_ARGS__)
#define log_notice(...)  log_write(LOG_LEVEL_NOTICE, NULL, __VA_ARGS__)
#define log_info(...)    log_write(LOG_LEVEL_INFO, NULL, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_LEVEL_DEBUG, NULL, __VA_ARGS__)
