/* Numbers within bounds, one digit after another. What is written so far is kept as an integer; whether it can still
 * become an allowed number is asked of intervals: k more digits before the point and all behind it reach from so many
 * zeros to so many nines, and a multiple of `step` lies in what of that is within the bounds, or does not. So any
 * bounds and any divisor cost the same, and nothing is rounded: all is exact in units of the last digit.
 *
 * Values are written with at most 15 significant digits unless the schema's own integers have more, so that whoever
 * reads them as doubles sees what was meant. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/grammar.h"

#define DIGITS 18                  /* of the largest number in units of its last digit */
#define EXACT 15                   /* of a decimal that a double gives back */
#define FRACTION 6                 /* behind the point, where the schema does not need more */
#define WHOLE 9                    /* before it, where the schema has no bounds */

static const int64_t tens[] = {
    1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000, 10000000000, 100000000000,
    1000000000000, 10000000000000, 100000000000000, 1000000000000000, 10000000000000000, 100000000000000000,
    1000000000000000000,
};

/* ---- what the schema says ---- */

/* A decimal: digits / 10^point. */
struct decimal { int64_t digits; int point; };

/* The shortest decimal that reads as this number. False: too large or too fine for 18 digits. */
static bool decimal_of(struct decimal *ret, const json_t *j)
{
    char text[40];
    double v = json_number_value(j);
    struct decimal d = { 0 };
    bool behind = false;
    long exponent = 0;

    if (json_is_integer(j)) {
        *ret = (struct decimal){ json_integer_value(j), 0 };
        return ret->digits < tens[DIGITS] && ret->digits > -tens[DIGITS];
    }
    for (int digits = EXACT; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*e", digits - 1, v);
        if (strtod(text, NULL) == v)
            break;
    }
    for (const char *s = text + (*text == '-'); *s; s++)
        if (*s == 'e') {
            exponent = strtol(s + 1, NULL, 10);
            break;
        } else if (*s == '.') {
            behind = true;
        } else {
            d.digits = d.digits * 10 + (*s - '0');
            d.point += behind;
        }
    d.point -= (int)exponent;
    for (; d.digits && d.digits % 10 == 0 && d.point > 0; d.point--)
        d.digits /= 10;
    if (!d.digits)
        d.point = 0;
    for (; d.point < 0; d.point++) {
        if (d.digits >= tens[DIGITS - 1])
            return false;
        d.digits *= 10;
    }
    if (*text == '-')
        d.digits = -d.digits;
    *ret = d;
    return d.point <= DIGITS;
}

/* The decimal in units of 10^-fraction, rounded up or down; out of range: the largest there is. */
static int64_t scaled(struct decimal d, unsigned fraction, bool up)
{
    const int64_t limit = tens[DIGITS] - 1;
    int shift = (int)fraction - d.point;
    int64_t unit, v;

    if (shift >= 0)
        return shift > DIGITS || llabs(d.digits) > limit / tens[shift] ? d.digits > 0 ? limit : d.digits ? -limit : 0
                                                                       : d.digits * tens[shift];
    unit = tens[-shift];
    v = d.digits / unit;
    if (d.digits % unit)
        v += up && d.digits > 0 ? 1 : !up && d.digits < 0 ? -1 : 0;
    return v;
}

struct bound { struct decimal at; bool given, exclusive; };

/* The tighter of a schema's two bounds on one side; sign 1: lower, -1: upper. */
static int bound_read(struct bound *ret, const json_t *schema, const char *closed, const char *open, int sign,
                      struct err *err)
{
    const json_t *c = json_object_get(schema, closed), *o = json_object_get(schema, open);
    struct bound b = { .given = c || o };

    if ((c && !json_is_number(c)) || (o && !json_is_number(o)))
        return err_set(err, -EINVAL, "%s: expected a number", c && !json_is_number(c) ? closed : open);
    if (!b.given)
        return 0;
    b.exclusive = o && (!c || sign * json_number_value(o) >= sign * json_number_value(c));
    if (!decimal_of(&b.at, b.exclusive ? o : c))
        return err_set(err, -EINVAL, "%s: expected at most %d digits", b.exclusive ? open : closed, DIGITS);
    *ret = b;
    return 0;
}

/* How many digits stand before the point. */
static int whole_digits(struct decimal d)
{
    int n = 0;

    for (int64_t v = llabs(d.digits) / tens[MIN(MAX(d.point, 0), DIGITS)]; v; v /= 10)
        n++;
    return n;
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The numbers between the bounds with so many digits behind the point. False: none. */
static bool number_between(struct number *n, const struct bound *low, const struct bound *high, struct decimal step,
                           unsigned fraction, int whole)
{
    int64_t edge = tens[MIN((int)fraction + whole, DIGITS)] - 1;

    n->fraction = fraction;
    n->min = low->given ? scaled(low->at, fraction, true) : -edge;
    n->max = high->given ? scaled(high->at, fraction, false) : edge;
    /* An exclusive bound that lies between two numbers was rounded past already. */
    n->min += low->exclusive && n->min == scaled(low->at, fraction, false);
    n->max -= high->exclusive && n->max == scaled(high->at, fraction, true);
    /* Multiples of digits / 10^point among those of 10^-fraction, with more and more zeros at their end. */
    if (step.digits && step.point < (int)fraction) {
        if (step.digits > (tens[DIGITS] - 1) / tens[(int)fraction - step.point])
            return false;
        step.digits *= tens[(int)fraction - step.point];
    } else if (step.digits) {
        step.digits /= common_divisor(step.digits, tens[step.point - (int)fraction]);
    }
    for (unsigned zeros = 0; zeros <= fraction; zeros++) {
        int64_t s = step.digits ? step.digits : 1, rest = s / common_divisor(s, tens[zeros]);
        n->steps[zeros] = rest > INT64_MAX / tens[zeros] ? INT64_MAX : rest * tens[zeros];
    }
    return n->min <= n->max && (n->max >= 0 ? n->max / n->steps[0] * n->steps[0] >= n->min
                                            : n->min / n->steps[0] * n->steps[0] <= n->max);
}

int number_init(struct number *ret, const json_t *schema, bool integer, struct err *err)
{
    const json_t *multiple = json_object_get(schema, "multipleOf");
    struct bound low = { 0 }, high = { 0 };
    struct decimal step = { 0 };
    int r, whole, fraction, finest;

    r = bound_read(&low, schema, "minimum", "exclusiveMinimum", 1, err);
    if (r == 0)
        r = bound_read(&high, schema, "maximum", "exclusiveMaximum", -1, err);
    if (r < 0)
        return r;
    if (multiple && (!json_is_number(multiple) || json_number_value(multiple) <= 0))
        return err_set(err, -EINVAL, "multipleOf: expected a number above 0");
    if (multiple && !decimal_of(&step, multiple))
        return err_set(err, -EINVAL, "multipleOf: expected at most %d digits", DIGITS);

    /* One bound alone leaves room for ten times as much on its other side. */
    whole = MAX(whole_digits(low.at), whole_digits(high.at));
    if (!low.given || !high.given)
        whole = MAX(whole + (low.given || high.given), integer ? EXACT : WHOLE);
    if (multiple)
        whole = MAX(whole, !low.given || !high.given ? whole_digits(step) + 1 : 0);
    whole = MIN(whole, DIGITS);
    finest = integer ? 0 : MAX(EXACT - whole, 0);
    fraction = MIN(finest, MAX(FRACTION, step.point));
    if (!number_between(ret, &low, &high, step, (unsigned)fraction, whole) &&
        !number_between(ret, &low, &high, step, (unsigned)finest, whole))
        return err_set(err, -EINVAL, "no number of up to 15 digits is within these bounds");
    return 0;
}

/* ---- digit by digit ---- */

enum phase { PHASE_BEGIN, PHASE_MINUS, PHASE_ZERO, PHASE_WHOLE, PHASE_POINT, PHASE_FRACTION };
#define AT(phase, negative, behind) ((uint32_t)((phase) | (negative) << 3 | (behind) << 4))

static enum phase phase_of(struct number_state s)
{
    return (enum phase)(s.at & 7);
}

static bool is_negative(struct number_state s)
{
    return s.at & 8;
}

static unsigned behind_of(struct number_state s)
{
    return s.at >> 4;
}

/* Is there an allowed number in from..to, both without sign, that ends in so many zeros? */
static bool reaches(const struct number *n, bool negative, uint64_t from, uint64_t to, unsigned zeros)
{
    int64_t lo = negative ? MAX(-n->max, 1) : MAX(n->min, 0), hi = negative ? -n->min : n->max;

    lo = MAX(lo, (int64_t)from);
    hi = MIN(hi, (int64_t)to);
    return lo <= hi && hi / n->steps[zeros] * n->steps[zeros] >= lo;
}

/* Can exactly `more` digits before the point and `behind` in all behind it make an allowed number of the state? */
static bool completes(const struct number *n, struct number_state s, unsigned more, unsigned behind)
{
    unsigned had = phase_of(s) == PHASE_FRACTION ? behind_of(s) : 0;
    bool fresh = phase_of(s) == PHASE_BEGIN || phase_of(s) == PHASE_MINUS;
    uint64_t from = s.value, to = s.value, limit = (uint64_t)tens[DIGITS] - 1;

    /* Only what no zero begins may grow, and only before the point. */
    if ((phase_of(s) != PHASE_WHOLE && !fresh && more) || (fresh && !more) || behind < had ||
        (phase_of(s) == PHASE_POINT && !behind))
        return false;
    if (fresh) {
        from = more == 1 ? 0 : (uint64_t)tens[more - 1];
        to = (uint64_t)tens[more] - 1;
    } else if (more) {
        if (from > limit / (uint64_t)tens[more])
            return false;
        from *= (uint64_t)tens[more];
        to = from + (uint64_t)tens[more] - 1;
    }
    /* Digits behind the point that are not written are zeros. */
    if (from > limit / (uint64_t)tens[n->fraction - had])
        return false;
    from *= (uint64_t)tens[n->fraction - had];
    to = to > limit / (uint64_t)tens[n->fraction - had] ? limit : to * (uint64_t)tens[n->fraction - had];
    to = MIN(to + (uint64_t)(tens[n->fraction - had] - tens[n->fraction - behind]), limit);
    return reaches(n, is_negative(s), from, to, n->fraction - behind);
}

/* Fewest bytes to an allowed number, or UINT32_MAX. */
static unsigned missing(const struct number *n, struct number_state s)
{
    unsigned had = behind_of(s), best = UINT32_MAX, point = phase_of(s) < PHASE_POINT;

    for (unsigned more = 0; more + n->fraction <= DIGITS && more < best; more++)
        for (unsigned behind = had; behind <= n->fraction; behind++) {
            unsigned bytes = more + behind - had + (behind && point);
            if (bytes < best && completes(n, s, more, behind))
                best = bytes;
        }
    if (phase_of(s) == PHASE_BEGIN) {
        unsigned negative = missing(n, (struct number_state){ 0, AT(PHASE_MINUS, 1, 0) });
        best = negative < best ? negative + 1 : best;
    }
    return best;
}

unsigned number_missing(const struct number *n, struct number_state s)
{
    return missing(n, s);
}

bool number_step(const struct number *n, struct number_state *s, uint8_t byte)
{
    bool digit = byte >= '0' && byte <= '9';
    struct number_state to = *s;
    enum phase phase = phase_of(*s);

    if (digit && s->value > (uint64_t)(tens[DIGITS] - 10) / 10)
        return false;
    if (digit)
        to.value = s->value * 10 + (byte - '0');
    if (byte == '-' && phase == PHASE_BEGIN)
        to.at = AT(PHASE_MINUS, 1, 0);
    else if (byte == '.' && (phase == PHASE_ZERO || phase == PHASE_WHOLE) && n->fraction)
        to.at = AT(PHASE_POINT, is_negative(*s), 0);
    else if (!digit || phase == PHASE_ZERO)
        return false;
    else if (phase <= PHASE_MINUS)
        to.at = AT(byte == '0' ? PHASE_ZERO : PHASE_WHOLE, is_negative(*s), 0);
    else if (phase >= PHASE_POINT && behind_of(*s) == n->fraction)
        return false;
    else if (phase >= PHASE_POINT)
        to.at = AT(PHASE_FRACTION, is_negative(*s), behind_of(*s) + 1);
    if (missing(n, to) == UINT32_MAX)
        return false;
    *s = to;
    return true;
}
