/* Signals against sums done the plain way, and a confidence that goes the right way. */
#include <criterion/criterion.h>
#include "policy/policy.h"

Test(signals, sums_and_extremes)
{
    enum { N = 100 };
    double lp[N], worst = 0;
    struct policy_signals s;

    policy_signals_init(&s);
    for (int i = 0; i < N; i++) {
        lp[i] = -(double)(i * 37 % 101) / 50;
        policy_signals_add(&s, lp[i], 3 + i % 7, 0.1 * (i % 5));

        /* By hand: the worst mean of 16 in a row, or the mean of all while there are fewer. */
        worst = 0;
        for (int end = i < 15 ? i : 15; end <= i; end++) {
            double mean = 0;
            const int begin = end < 15 ? 0 : end - 15;
            for (int k = begin; k <= end; k++)
                mean += lp[k] / (end - begin + 1);
            worst = MIN(worst, mean);
        }
        cr_assert(fabs(s.worst_window - worst) < 1e-9, "token %d: %g, %g", i, s.worst_window, worst);
    }
    cr_assert(s.n_tokens == N && s.min_margin == 3 && fabs(s.max_entropy - 0.4) < 1e-12);
    cr_assert(s.min_logprob == -2.0 && fabs(s.sum_entropy - 20) < 1e-9);
}

Test(signals, confidence)
{
    struct policy_signals s;
    double last = 1;

    policy_signals_init(&s);
    cr_assert(policy_confidence(&s) == 0);
    for (int i = 0; i < 12; i++) {
        policy_signals_init(&s);
        for (int k = 0; k < 6; k++)
            policy_signals_add(&s, -1e-5, 12, 1e-4);
        policy_signals_add(&s, -1e-4 * pow(3, i), 12 - i, 1e-3 * pow(2.5, i * 0.8));
        cr_assert(policy_confidence(&s) < last, "a worse token must not make it surer: %d", i);
        last = policy_confidence(&s);
        cr_assert(last > 0 && last < 1);
        if (i == 0)
            cr_assert(last > 0.9);
    }
    cr_assert(last < 0.3);
}

Test(signals, no_numbers_mean_no_confidence)
{
    static const double odd[] = { NAN, -INFINITY };

    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        for (int at = 0; at < 3; at++) {
            struct policy_signals s;

            policy_signals_init(&s);
            for (int k = 0; k < 3; k++)
                policy_signals_add(&s, k == at ? odd[i] : -1e-5, 12, 1e-4);
            cr_assert(policy_confidence(&s) == 0 || (isinf(odd[i]) && policy_confidence(&s) < 0.05), "%zu %d", i, at);
        }
    }
}
