/* Choosing the next token, and measuring how sure the model was.
 *
 * The measures are of the raw logits, by a kernel that sums in double, so that every machine reports the same
 * numbers. Only then do penalties change them. The repeat penalty looks at the last 64 chosen tokens, the
 * frequency and presence penalties at all of them; the prompt counts for neither. Candidates are sorted only as far as
 * top-k and top-p reach into them.
 *
 * Sources: xoshiro256** and splitmix64, prng.di.unimi.it; nucleus sampling, arXiv:1904.09751; min-p,
 * arXiv:2407.01082. */
#include <errno.h>
#include <float.h>
#include <string.h>

#include "base/id.h"
#include "engine/internal.h"

#define REPEAT_LAST 64
#define LOGPROB_MIN (-9999.0f)        /* for what is impossible: JSON has no infinity */

struct candidate { float logit; int32_t id; };

struct sampler {
    const struct kernels *kernels;
    size_t n_vocab;
    double temperature, top_p, min_p, frequency, presence, repeat;
    size_t top_k, n_top;
    uint64_t rng[4];
    uint32_t *counts;                 /* how often each token was chosen; NULL when no penalty is on */
    int32_t last[REPEAT_LAST];        /* ring of what was chosen */
    size_t n_chosen;
    struct candidate *candidates;     /* NULL when temperature is 0 */
    bool all;                         /* logprobs are asked for: every logit counts */
};

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* xoshiro256**, as a number in [0, 1). */
static double uniform(uint64_t s[4])
{
    uint64_t result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

static double or_default(double v, double fallback)
{
    return isnan(v) ? fallback : v;
}

int sampler_new(struct sampler **ret, const struct chat_params *params, size_t n_vocab)
{
    struct sampler *s = calloc(1, sizeof(*s));
    uint64_t seed = (uint64_t)params->seed;
    bool penalties;

    if (!s)
        return -ENOMEM;
    s->kernels = kernels_get(NULL);
    if (!s->kernels) {
        free(s);
        return -EINVAL;
    }
    s->n_vocab = n_vocab;
    s->temperature = or_default(params->temperature, 1);
    s->top_p = or_default(params->top_p, 1);
    s->min_p = or_default(params->min_p, 0);
    s->frequency = or_default(params->frequency_penalty, 0);
    s->presence = or_default(params->presence_penalty, 0);
    s->repeat = or_default(params->repeat_penalty, 1);
    s->top_k = params->top_k > 0 ? MIN((size_t)params->top_k, n_vocab) : n_vocab;
    s->all = params->logprobs;
    s->n_top = params->logprobs ? (size_t)MIN(MAX(params->top_logprobs, 0), CHAT_MAX_TOP_LOGPROBS) : 0;
    if (params->seed < 0)
        random_bytes(&seed, sizeof(seed));
    for (int i = 0; i < 4; i++)
        s->rng[i] = splitmix64(&seed);

    penalties = s->frequency != 0 || s->presence != 0 || s->repeat != 1;
    if (penalties)
        s->counts = calloc(n_vocab, sizeof(*s->counts));
    if (s->temperature > 0)
        s->candidates = calloc(n_vocab, sizeof(*s->candidates));
    if ((penalties && !s->counts) || (s->temperature > 0 && !s->candidates)) {
        sampler_free(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

void sampler_free(struct sampler *s)
{
    if (!s)
        return;
    free(s->counts);
    free(s->candidates);
    free(s);
}

size_t sampler_leading(const struct sampler *s)
{
    if (s->all || s->counts || (s->candidates && s->top_k > SCREEN_LEADING))
        return 0;
    return s->candidates ? MAX(s->top_k, (size_t)2) : 2;          /* two for the margin */
}

static bool better(const struct candidate *a, const struct candidate *b)
{
    return a->logit != b->logit ? a->logit > b->logit : a->id < b->id;
}

/* Restore the heap (best first) of n candidates below the hole at i, which c is to fill. */
static void sift(struct candidate *heap, size_t n, size_t i, struct candidate c)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && better(&heap[child + 1], &heap[child]))
            child++;
        if (!better(&heap[child], &c))
            break;
        heap[i] = heap[child];
    }
    heap[i] = c;
}

/* exp(x) for x <= 0; nothing where it would not be felt beside exp(0) even a million times. */
static double exp_down(float x)
{
    return x > -60 ? kernel_exp(x) : 0;
}

/* The token's logit after the penalties. */
static float penalised(const struct sampler *s, const float *logits, int32_t id)
{
    float v = logits[id];

    if (!s->counts || !s->counts[id])
        return v;
    if (s->repeat != 1)
        for (size_t i = 0; i < MIN(s->n_chosen, REPEAT_LAST); i++)
            if (s->last[i] == id) {
                v = (float)(v > 0 ? v / s->repeat : v * s->repeat);
                break;
            }
    return (float)(v - s->counts[id] * s->frequency - s->presence);
}

static bool is_allowed(const uint64_t *allowed, size_t id)
{
    return !allowed || allowed[id / 64] >> id % 64 & 1;
}

static int32_t pick_best(const struct sampler *s, const float *logits, const uint64_t *allowed)
{
    struct candidate best = { 0, -1 };

    for (size_t i = 0; i < s->n_vocab; i++) {
        struct candidate c = { 0, (int32_t)i };
        if (!is_allowed(allowed, i))
            continue;
        c.logit = penalised(s, logits, c.id);
        if (best.id < 0 || c.logit > best.logit)
            best = c;
    }
    return MAX(best.id, 0);
}

/* Sort the candidates that top-k, top-p and min-p leave of `all`, best first, to their end; returns how many. top-p
 * counts the probabilities that top-k left. */
static size_t filter(struct sampler *s, size_t all, float max)
{
    struct candidate *heap = s->candidates;
    size_t n = all, kept = 0, limit = MIN(s->top_k, all);
    double total = 0, sum = 0;

    for (size_t i = n / 2; i-- > 0;)
        sift(heap, n, i, heap[i]);
    /* Popping puts the best behind the shrinking heap: the array's end, read backwards, is the order. */
    if (limit < all)
        for (; kept < limit; kept++) {
            struct candidate top = heap[0];
            n--;
            sift(heap, n, 0, heap[n]);
            heap[n] = top;
            total += exp_down(top.logit - max);
        }
    else if (s->top_p < 1)
        for (size_t i = 0; i < n; i++)
            total += exp_down(heap[i].logit - max);

    for (kept = 0; kept < limit; kept++) {
        struct candidate *c = &heap[all - 1 - kept];
        if (limit == all) {
            struct candidate top = heap[0];
            n--;
            if (n)
                sift(heap, n, 0, heap[n]);
            *c = top;
        }
        double p = exp_down(c->logit - max);
        if (kept && p < s->min_p)
            break;
        sum += p;
        if (s->top_p < 1 && sum >= s->top_p * total)
            return kept + 1;
    }
    return kept;
}

static int32_t pick_drawn(struct sampler *s, const float *logits, const uint64_t *allowed)
{
    struct candidate *c = s->candidates;
    size_t n = 0, i;
    float max = -FLT_MAX;
    double total = 0, sum = 0, u;

    for (i = 0; i < s->n_vocab; i++) {
        if (!is_allowed(allowed, i))
            continue;
        c[n] = (struct candidate){ penalised(s, logits, (int32_t)i), (int32_t)i };
        max = MAX(max, c[n].logit);
        n++;
    }
    if (!n)
        return 0;
    /* Without a filter every token stays, by id; with one, the best stand last. */
    if (s->top_k < n || s->top_p < 1 || s->min_p > 0) {
        size_t kept = filter(s, n, max);
        c += n - kept;
        n = kept;
    }
    for (i = n; i-- > 0;)
        total += exp_down((float)((c[i].logit - max) / s->temperature));
    /* The same sums in the same order: they pass u < total before the candidates end. */
    u = uniform(s->rng) * total;
    i = n;
    do
        sum += exp_down((float)((c[--i].logit - max) / s->temperature));
    while (sum <= u && i);
    return c[i].id;
}

/* How sure the model was: log of the sum of exponentials, entropy, best two and the asked-for alternatives. Values that
 * are not numbers become the least likely first. Returns log Z. */
static double measure(const struct sampler *s, float *logits, struct engine_token *ret)
{
    size_t n_best = MIN(MAX(s->n_top, (size_t)2), s->n_vocab), n = 0;
    struct candidate best[CHAT_MAX_TOP_LOGPROBS] = { { 0 } };
    double z, weighted, log_z;

    for (size_t i = 0; i < s->n_vocab; i++) {
        struct candidate c = { logits[i], (int32_t)i };
        size_t at;

        if (!isfinite(c.logit))
            c.logit = logits[i] = c.logit > 0 ? FLT_MAX / 4 : -FLT_MAX / 4;
        if (n == n_best && c.logit <= best[n - 1].logit)
            continue;
        at = n < n_best ? n++ : n - 1;
        for (; at && best[at - 1].logit < c.logit; at--)
            best[at] = best[at - 1];
        best[at] = c;
    }
    s->kernels->exp_sums(logits, s->n_vocab, best[0].logit, &z, &weighted);
    log_z = best[0].logit + log(z);
    ret->entropy = (float)MAX(log(z) - weighted / z, 0);
    ret->margin = n > 1 ? best[0].logit - best[1].logit : 0;
    ret->n_top = (uint32_t)MIN(s->n_top, n);
    for (size_t i = 0; i < ret->n_top; i++) {
        ret->top[i].id = (uint32_t)best[i].id;
        ret->top[i].logprob = MIN(MAX((float)(best[i].logit - log_z), LOGPROB_MIN), 0.0f);
    }
    return log_z;
}

void sampler_pick(struct sampler *s, float *logits, const uint64_t *allowed, struct engine_token *ret)
{
    double log_z = measure(s, logits, ret);
    int32_t id = s->candidates ? pick_drawn(s, logits, allowed) : pick_best(s, logits, allowed);

    ret->id = (uint32_t)id;
    ret->logprob = MIN(MAX((float)(logits[id] - log_z), LOGPROB_MIN), 0.0f);
    if (s->counts) {
        s->counts[id]++;
        s->last[s->n_chosen++ % REPEAT_LAST] = id;
    }
}
