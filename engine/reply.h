/* What an answer may be: words, a document of a schema, a call of a tool; and what its bytes belong to. */
#pragma once

#include "engine/grammar.h"
#include "engine/lexicon.h"

/* ---- tools.c: tools and formats, as the model sees them and as a grammar ---------------------------------------- */
/* The request's messages as they are rendered: definitions and the format told in the system message, calls and results
 * as text (docs/model-metadata.md). New reference; NULL: no memory. */
json_t *tools_messages(const struct chat_request *r);

/* What an answer is held to. */
struct tools {
    struct grammar *grammar;          /* owned; NULL: words only */
    uint32_t calls, n_calls;          /* nodes that are calls stand one behind the other; n_calls 0: there is none */
    bool words;                       /* words are allowed beside calls: `grammar` holds from a first brace on */
};
/* prices: NULL where no model is at hand. 0, -ENOMEM, or -EINVAL with *err naming what no grammar can be made of. */
int tools_init(struct tools *t, const struct chat_request *r, const struct lexicon *prices, struct err *err);
void tools_done(struct tools *t);

/* ---- reply.c ---------------------------------------------------------------------------------------------------- */
struct reply;
/* Borrows the request and the lexicon. As tools_init(). */
int reply_new(struct reply **ret, const struct chat_request *r, const struct lexicon *l, struct err *err);
void reply_free(struct reply *a);
/* The tokens that may come next while `budget` are left, a set of l->words words that is good until the next call.
 * 1: *ret is set; 0: all may, *ret is NULL; -EILSEQ: none. */
int reply_allowed(struct reply *a, size_t budget, const uint64_t **ret);
/* A token was chosen; append what it lets be shown to `text`, and tell what that is. 1: the answer is over, by a stop
 * string or because nothing can follow; 0: it is not; -ENOMEM; -EINVAL: the token was not allowed. */
int reply_push(struct reply *a, int32_t token, struct buf *text, enum answer_channel *ret);
/* It ends here; append what was held back. 0 or -ENOMEM. */
int reply_flush(struct reply *a, struct buf *text, enum answer_channel *ret);
uint32_t reply_stop(const struct reply *a);     /* as struct engine_end has it */
/* How it ended: `whole` false when it was cut off. */
enum engine_finish reply_finish(const struct reply *a, bool whole);
