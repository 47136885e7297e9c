/* Guessing what comes next, from what was said already: where the last few tokens stood before, what followed them then
 * is tried again ("prompt lookup decoding", after arXiv:2304.04487). The model checks all guesses in the run that makes
 * the next token anyway, and what it would not have said itself is dropped, so an answer never depends on them.
 *
 * Whether guesses pay depends on the machine, the model and how many requests share a run: reading weights costs the
 * same for one row or for five, computing does not. So the time of runs is kept by their number of rows, and from the
 * step between sizes follows which share of a run's time grows with its rows. The i-th guess is worth its row when the
 * chance that it and those before it are right is greater than that share. The chance is learnt from every guess, those
 * that were only looked up included. */
#include <string.h>

#include "engine/worker.h"

#define NGRAM_MAX 4
#define NGRAM_MIN 2
#define LUCK_FIRST 0.5
#define LUCK_WEIGHT 0.1                /* of the newest guess */
#define TIME_WEIGHT 0.1                /* of the newest run */
#define WORTH 1.1                      /* what is gained must be more than the noise of measuring */

void draft_begin(struct draft *d)
{
    *d = (struct draft){ .luck = LUCK_FIRST };
}

void draft_find(struct draft *d, const int32_t *text, size_t n, size_t max)
{
    d->n = 0;
    for (size_t len = NGRAM_MAX; len >= NGRAM_MIN && !d->n && max; len--) {
        const int32_t *last = text + n - len;

        if (n <= len)
            continue;
        /* The most recent place: what is said now is most like it. */
        for (size_t at = n - len; at-- > 0;)
            if (text[at] == *last && memcmp(text + at, last, len * sizeof(*text)) == 0) {
                d->n = MIN(MIN(max, (size_t)DRAFT_MAX), n - len - at);
                memcpy(d->tokens, text + at + len, d->n * sizeof(*text));
                break;
            }
    }
}

void draft_learn(struct draft *d, size_t i, int32_t token)
{
    if (i < d->n)
        d->luck += LUCK_WEIGHT * ((d->tokens[i] == token) - d->luck);
}

/* ---- what a row costs -------------------------------------------------------------------------------------------- */

static size_t bucket_of(size_t rows)
{
    size_t b = 0;

    while (b + 1 < PACE_BUCKETS && rows > (size_t)1 << b)
        b++;
    return b;
}

void pace_note(struct pace *p, size_t rows, double sec)
{
    struct pace_bucket *b = &p->of[bucket_of(rows)];

    if (!b->sec)
        *b = (struct pace_bucket){ (double)rows, sec };
    b->rows += TIME_WEIGHT * ((double)rows - b->rows);
    b->sec += TIME_WEIGHT * (sec - b->sec);
}

double pace_share(const struct pace *p, size_t rows)
{
    size_t at = bucket_of(rows), up = at + 1;
    double slope;

    while (up < PACE_BUCKETS && !p->of[up].sec)
        up++;
    if (up == PACE_BUCKETS || !p->of[at].sec)
        return 0;
    slope = (p->of[up].sec - p->of[at].sec) / (p->of[up].rows - p->of[at].rows);
    return MAX(slope, 0) * (double)rows / p->of[at].sec;
}

size_t draft_worth(const struct draft *d, double share)
{
    double chance = d->luck;
    size_t n = 0;

    for (; n < d->n && chance > share * WORTH; n++)
        chance *= d->luck;
    return n;
}
