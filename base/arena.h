/* Memory that lives as long as one request and is dropped at once (h2o's req->pool). Not thread-safe. */
#pragma once

#include "base/util.h"

struct arena { struct arena_block *head; };

void arena_init(struct arena *a);                                  /* allocates nothing */
void arena_done(struct arena *a);                                  /* frees everything; the arena is empty again */
void *arena_alloc(struct arena *a, size_t n);                      /* zeroed, 16-byte aligned; NULL: no memory */
char *arena_strdup(struct arena *a, const char *s);                /* NULL for NULL or no memory */
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) PRINTF_LIKE(2, 3);
