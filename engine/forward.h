/* What the files of the forward pass share: forward.c runs the layers, attention.c what positions see of each other,
 * head.c what comes after the last layer. */
#pragma once

#include "engine/internal.h"

#define WORTH_A_THREAD 524288   /* multiplications below which waking a thread costs more than it brings */

struct forward {
    const struct model *m;
    const struct kernels *kernels;
    struct pool *pool;
    size_t max_rows, wide, wide_q;       /* floats and int8 a row of h and q */
    size_t n_turns;                      /* 2 when there are local layers, whose angles come second */
    double *turn;                        /* (n_turns, rope_dim/2) radians a position */

    float *x;           /* (max_rows, n_embd) the residual stream */
    float *h;           /* (max_rows, wide) what goes into a product, before quantisation; attention's output */
    int8_t *q;          /* (max_rows, wide_q) h quantised, zero past its width */
    float *unit;        /* (max_rows) what one step of q is worth */
    float *products;    /* (max_rows, products_stride): q|k|v, or gate|up; o or down when more is done to it */
    size_t products_stride;
    float *angles;      /* (max_rows, n_turns, rope_dim) cosines, then sines */
    float *lines;       /* (threads, line) a matrix's row in floats */
    size_t line;
    const struct forward_row **wants;    /* (max_rows) those that want logits */
    struct head *head;
    size_t *positions;  /* (max_rows) */
    size_t *spans;      /* (max_rows + 1) attention's: where rows that go together begin */

    /* The run under way, and the layer it is at. */
    const struct forward_row *rows;
    size_t n, n_logits, layer, n_spans, max_queries;
    const struct model_layer *y;
    float *hidden;      /* (n, n_embd) what output_norm gives of each row, or NULL: not wanted */

    /* What is done to x before the next product, and to what came of it after. */
    const float *gain, *norm_in, *post_gain;
    const char *norm_name, *product_name, *post_name;
    enum projection_input input;
    bool told;        /* the norm was told to the trace before */

    void (*trace)(void *arg, const char *name, size_t row, const float *x, size_t n);
    void *trace_arg;
};

/* Tell the trace of a stage of row i. */
void forward_tell(const struct forward *f, size_t i, const char *stage, const float *x, size_t n);
/* The model's norm; out may be x. */
void forward_norm(const struct forward *f, float *out, const float *x, const float *gain, size_t n, float eps);

/* attention.c. For rows begin..end: tell of q, k and v, turn q and k, and put k and v where the session keeps them. */
void attention_remember(void *forward, size_t begin, size_t end);
/* h = softmax(q k / sqrt(head_dim)) v for all rows. */
void attention_run(struct forward *f);

/* head.c: logits and hidden of the rows that want them. new: 0 or -ENOMEM. */
struct head;
int head_new(struct head **ret, const struct dense *head, struct cache *cache, struct pool *p);
void head_free(struct head *h);
static inline void head_freep(struct head **h) { head_free(*h); }
void head_run(struct forward *f);

/* How many rows of a matrix are worth a thread. */
static inline size_t grain_of(size_t work_a_row, size_t multiple)
{
    return (WORTH_A_THREAD / work_a_row / multiple + 1) * multiple;
}
