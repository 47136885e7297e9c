/* What the files of the engine's process share.
 *
 *   worker.c      the process: loads the model, reads frames, sleeps when there is nothing to do
 *   scheduler.c   which rows the next run of the model is made of
 *   job.c         one request being answered: from its frame to its last token
 *   prefix.c      keys and values of earlier prompts and answers, kept for those that begin alike
 *   draft.c       guesses of the next tokens, and whether they pay
 *   service.c     what needs no answer: vectors of texts, ids of a text and back
 *
 * All of it belongs to the decode thread. */
#pragma once

#include <sys/queue.h>

#include "engine/reply.h"
#include "engine/internal.h"

/* ---- prefix.c ---- */
struct prefix {
    struct kv_pool *kv;
    size_t n_pages, max_pages;
    TAILQ_HEAD(, prefix_node) by_use, roots;   /* by_use: oldest first */
};
void prefix_init(struct prefix *p, struct kv_pool *kv, size_t max_bytes);
void prefix_done(struct prefix *p);                  /* of a zeroed one too */
/* Make s hold the longest known beginning of these n tokens of the client. How many those are. */
size_t prefix_find(struct prefix *p, const char *client, const int32_t *tokens, size_t n, struct session *s);
/* Keep what s holds, which is s->n tokens. What does not fit is not kept. */
void prefix_keep(struct prefix *p, const char *client, const int32_t *tokens, const struct session *s);
bool prefix_shrink(struct prefix *p);                /* drop the page used longest ago; false: there is none */

/* ---- draft.c ---- */
#define DRAFT_MAX 8
struct draft {
    int32_t tokens[DRAFT_MAX];
    size_t n;
    double luck;                      /* the chance that a guess is right, if those before it were */
};
void draft_begin(struct draft *d);
/* Look for at most max tokens that may follow the n of text. */
void draft_find(struct draft *d, const int32_t *text, size_t n, size_t max);
void draft_learn(struct draft *d, size_t i, int32_t token);    /* the token that came where the i-th guess was; guesses
                                                                  before it were right */
/* How many of its guesses are worth a row, when this share of a run's time grows with the rows. */
size_t draft_worth(const struct draft *d, double share);

/* How long runs take, by their number of rows: 1, 2, up to 4, up to 8 and so on. */
#define PACE_BUCKETS 9
struct pace { struct pace_bucket { double rows, sec; } of[PACE_BUCKETS]; };
void pace_note(struct pace *p, size_t rows, double sec);
double pace_share(const struct pace *p, size_t rows);          /* 0: not known yet */

/* ---- the worker ---- */
/* One request being answered; a slot with its session and room for logits, used again and again. */
struct job {
    struct chat_request *request;     /* NULL: the slot is free */
    uint64_t id;
    char *client;                     /* whose it is */
    bool batch;
    struct session *session;
    float *logits;                    /* (n_vocab) */
    struct sampler *sampler;
    struct reply *reply;
    const uint64_t *allowed;          /* what may come next, lent by the answer; NULL: all */
    int held;                         /* as reply_allowed() says */
    struct tokens text;               /* the prompt, then what was said; the session holds it but for the end */
    size_t n_prompt, n_cached;        /* of text: the prompt, and what of it was known */
    size_t n_tokens, max_tokens;      /* new ones */
    struct draft draft;
    size_t n_guessed;                 /* of the new ones: guesses that were right */
    uint64_t start_usec, prompt_usec; /* when it came, and when its prompt was through (0: not yet) */
    /* What came of the run under way. */
    const struct forward_row *rows;   /* its rows in it */
    size_t n_rows, keep;              /* keep: how much of what the session holds is right */
    bool over;
    enum engine_finish finish;        /* when over */
    struct buf shown, frame, out;     /* scratch: what a token shows, its payload; frames for ternd */
    bool parked;                      /* its pages were needed by others: it is read again when there is room */
};

/* Texts being made vectors, one at a time, in order. */
struct embedding {
    uint64_t id;
    struct tokens ids;                /* of all texts, one after the other */
    size_t *ends;                     /* (n) where each text ends in ids */
    size_t n, done;
    float *rows;                      /* (tokens of the one at work, n_embd), as far as its session has read it */
    struct buf vectors;               /* the payload so far */
    struct embedding *next;
};

struct worker {
    int fd;
    const struct engine_config *cfg;
    struct model *model;
    struct pool *pool;
    struct forward *forward;
    struct lexicon *lexicon;
    size_t n_ctx, longest_piece;
    /* scheduler.c: */
    struct kv_pool *kv;
    struct forward_row *rows;
    struct job *jobs;
    size_t n_jobs, n_running;
    struct job **active;              /* of the run under way */
    size_t n_active;
    size_t turn;                      /* whose prompt goes first in the next step */
    float *draft_logits;              /* (DRAFT_ROWS, n_vocab) */
    struct pace pace;
    struct prefix prefix;
    struct embedding *embeddings;     /* in order of arrival */
    struct session *embed_session;    /* made when first needed */
    struct buf out;                   /* frames not yet written */
};

/* ---- worker.c ---- */
/* Queue a frame, or whole frames; what is queued leaves in one write after each step. 0, -ENOMEM, or the socket's
 * -errno. */
int worker_send(struct worker *w, uint32_t type, uint64_t id, const void *data, size_t len);
int worker_send_frames(struct worker *w, const struct buf *frames);
/* Why a request was not begun; code NULL: it was. */
struct refusal { const char *code; struct err err; };
void refusal_set(struct refusal *why, int r);         /* by -ENOMEM or -EINVAL; the words of the latter are in err */
int worker_refuse(struct worker *w, uint64_t id, const struct refusal *why);

/* ---- scheduler.c ---- */
int scheduler_init(struct worker *w, struct err *err);
void scheduler_done(struct worker *w);
bool scheduler_busy(const struct worker *w);
/* One run of the model and what follows from it. 0, or what worker_send() says. */
int scheduler_step(struct worker *w);
int scheduler_start(struct worker *w, const struct frame *f);
int scheduler_cancel(struct worker *w, uint64_t id);

/* ---- job.c ---- */
/* Fill the free slot with the request in the frame; it stays free when it is refused. */
void job_start(struct worker *w, struct job *j, const struct frame *f, struct refusal *why);
void job_init(struct job *j);
void job_done(struct job *j);
void job_clear(struct job *j);                        /* a free slot again */
int job_end(struct worker *w, struct job *j, enum engine_finish finish);
/* The prompt that a request makes, in *ret; for why->code NULL. */
void job_prompt(const struct worker *w, const struct chat_request *request, struct tokens *ret, struct refusal *why);
/* Work out what may come next, before the model is asked. 1: `allowed` is set; 0: all may; -EILSEQ: nothing may, which
 * job_advance() ends with. */
int job_allow(struct job *j);
/* Take what came of its rows: the tokens that follow, and what is to be told of them. Touches nothing but the job, so that
 * several may be advanced at once. */
void job_advance(const struct worker *w, struct job *j);
/* Then, one after the other: tell, drop what was guessed wrong, end. 0, or what worker_send() says. */
int job_settle(struct worker *w, struct job *j);

/* ---- service.c ---- */
int service_tokenize(struct worker *w, const struct frame *f);
int service_detokenize(struct worker *w, const struct frame *f);
int service_embed(struct worker *w, const struct frame *f);    /* begins; embedding_step() goes on */
int embedding_step(struct worker *w);                          /* a chunk more of the first one */
int embedding_cancel(struct worker *w, uint64_t id);
void embedding_free(struct embedding *e);
