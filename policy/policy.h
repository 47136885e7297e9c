/* Policy: pure decisions. Inputs in, decision out: no I/O, no clock, no randomness of its own, so that any logged
 * decision can be replayed and the whole state space can be enumerated in a test.
 *
 * A request is decided in stages. At each, hard gates first give the set of routes that are ALLOWED (label x endpoint,
 * mode, override, what is up, what fits); then, inside that set only, the score chooses. A score can never widen the
 * set. Reasons are told as codes; policy_explain() turns a decision's numbers into plain sentences. */
#pragma once

#include <stdbool.h>
#include "base/chat.h"
#include "base/err.h"

/* ---- Labels: what may leave -------------------------------------------------------------------------------------- */
enum label { LABEL_PUBLIC, LABEL_INTERNAL, LABEL_PRIVATE, LABEL_SECRET, LABEL_COUNT };
const char *label_name(enum label l);                          /* "public", … */
int label_from_string(enum label *ret, const char *s);         /* 0 or -EINVAL; case-insensitive */
/* A set of labels as bits (1u << label). "public, internal" -> set. 0 or -EINVAL. Empty string: empty set. */
int label_set_from_string(unsigned *ret, const char *s);

/* Where a label came from, most telling first. */
enum label_source { LABEL_FROM_DEFAULT, LABEL_FROM_KEY, LABEL_FROM_HEADER, LABEL_FROM_DETECTOR, LABEL_FROM_ERROR };
const char *label_source_name(enum label_source s);            /* "default", "key", "header", "detector", "error" */
struct label_result { enum label label; enum label_source source; };
/* The effective label: the maximum over everything that labelled the request; the default only when nothing did. A header
 * that is there but not a label is an error, and an error is private at least. NULL: not given. */
struct label_result policy_label(enum label default_label, const enum label *key_label, const char *header);
/* The same after the content was looked at (policy/privacy.h): found, a set of enum pii, raises it to `raise` at least; a
 * scan that failed (negative) to private at least. Never lowers. */
struct label_result policy_label_found(struct label_result l, int scan, unsigned found, enum label raise);

/* ---- Configuration ------------------------------------------------------------------------------------------------ */
enum mode { MODE_AUTO, MODE_LOCAL_ONLY, MODE_CLOUD_ONLY, MODE_PREFER_LOCAL, MODE_COUNT };
const char *mode_name(enum mode m);                            /* "auto", "local-only", "cloud-only", "prefer-local" */
int mode_from_string(enum mode *ret, const char *s);           /* 0 or -EINVAL; case-insensitive */
/* The mode of one request: what it asks for (NULL: nothing), but never more than the configured mode allows: local-only and
 * cloud-only stay what they are. 0, -EINVAL when `override` is no mode, or -EPERM when it asks cloud-only to stay local. */
int policy_mode(enum mode *ret, enum mode configured, const char *override, struct err *err);

#define POLICY_MAX_ENDPOINTS 16

/* A cloud endpoint as policy sees it: constant configuration only. */
struct policy_endpoint {
    char name[64];               /* section [cloud NAME] */
    char model[128];             /* the model asked upstream */
    char region[32];             /* "" unknown */
    unsigned labels;             /* label set that may be sent there */
    int64_t price_in, price_out; /* micro-dollars per million tokens */
};

struct policy_config {
    enum mode mode;
    enum label default_label;
    unsigned hold_tokens;        /* local tokens held back and judged before a byte is released; 0: no judgement in stream */
    double threshold;            /* escalate when P(local answer right) is below this */
    double abort_threshold;      /* the stricter bound in stream, before the answer is complete; <= threshold */
    unsigned detect;             /* set of enum pii that is looked for in what is labelled lower than detected_label */
    enum label detected_label;   /* what it is labelled then */
    char terms[1024];            /* words that count as found, separated by commas */
    char pattern[512];           /* a regular expression (PCRE2) that counts as found; "": none */
    uint64_t max_prompt_bytes;   /* longer requests are taken as too hard for the local model (0: no such rule) */
    struct policy_endpoint endpoints[POLICY_MAX_ENDPOINTS];   /* in order of preference */
    size_t n_endpoints;
};
void policy_config_default(struct policy_config *c);           /* local, private, no endpoint */
/* "sha256:…" of the canonical JSON of c: which policy decided. */
#define POLICY_DIGEST_BYTES 72
int policy_digest(char out[POLICY_DIGEST_BYTES], const struct policy_config *c);

/* ---- Features of a request before anything is generated: length and structure ------------------------------------- */
struct policy_features {
    uint32_t bytes, words, turns;          /* all contents; user turns */
    uint32_t digits, lines, code_marks, question_marks, non_ascii;   /* counts in the last user message */
    uint32_t longest_word;
    double p_hard;                         /* 0..1, a logistic of the above: "is this longer and more structured than what a
                                              small model is for"; coefficients in features.c with their source */
};
void policy_features(struct policy_features *ret, const json_t *messages);

/* ---- Signals of a local answer as it is generated ------------------------------------------------------------------ */
struct policy_signals {
    uint32_t n_tokens;
    double sum_logprob, min_logprob, sum_margin, min_margin, sum_entropy, max_entropy;
    double window[16];                     /* last logprobs; worst_window is the lowest mean of 16 in a row */
    double worst_window;
    bool complete;                         /* the answer ended by itself (stop), not cut by length */
};
void policy_signals_init(struct policy_signals *s);
void policy_signals_add(struct policy_signals *s, double logprob, double margin, double entropy);
/* P(the local answer is right) from the signals so far: a logistic whose coefficients are fitted for the shipped model on
 * CLINC150's validation split (tools/fit_confidence.py; never on test data). 0 tokens: 0. */
double policy_confidence(const struct policy_signals *s);

/* ---- The breaker of one endpoint: closed, open, half-open ----------------------------------------------------------- */
enum breaker_state { BREAKER_CLOSED, BREAKER_OPEN, BREAKER_HALF_OPEN, BREAKER_LATCHED /* 401/403/404: until reload */ };
struct breaker {
    enum breaker_state state;
    unsigned consecutive, successes, probes_out;
    uint64_t open_until_usec, open_for_usec;
    struct { uint64_t at_usec; bool ok; } recent[64];           /* ring for the failure rate in 30 s */
    size_t n_recent, next;
};
enum call_result { CALL_OK, CALL_FAILED /* connect, timeout, 429, 5xx, cut */, CALL_REJECTED /* 400: no failure of the cloud */,
                   CALL_DENIED /* 401, 403, 404: latch */, CALL_CANCELLED /* says nothing */ };
void breaker_init(struct breaker *b);
bool breaker_allows(struct breaker *b, uint64_t now_usec);       /* may a call start now? turns open into half-open when due;
                                                                   a true in half-open takes the one probe */
bool breaker_would_allow(const struct breaker *b, uint64_t now_usec);   /* the same question, without taking the probe */
void breaker_note(struct breaker *b, uint64_t now_usec, enum call_result r);
const char *breaker_state_name(enum breaker_state s);

/* ---- Decisions ------------------------------------------------------------------------------------------------------ */
enum route { ROUTE_NONE, ROUTE_LOCAL, ROUTE_CLOUD };
const char *route_name(enum route r);                            /* "none", "local", "cloud" */

enum stage { STAGE_BEFORE, STAGE_STREAM /* held window filled */, STAGE_END /* local answer complete, nothing released */,
             STAGE_LOCAL_FAILED /* engine down, refused or died before a byte was released */,
             STAGE_CLOUD_FAILED /* before a byte was released */, STAGE_COUNT };
const char *stage_name(enum stage s);

/* What the `model` member of the request asked for. */
enum ask { ASK_AUTO, ASK_LOCAL, ASK_CLOUD /* an endpoint's name or model: ask_endpoint */ };

struct policy_input {
    enum stage stage;
    enum label label;
    enum mode mode;                        /* after the per-request override: policy_mode() */
    enum ask ask; size_t ask_endpoint;
    bool local_up, local_fits;             /* engine ready; prompt fits its context as far as known */
    bool released;                         /* bytes of the local answer were shown: tiers are never spliced */
    bool local_tried, local_complete;      /* a local answer was begun; a whole one is in hand (held) */
    bool link_up;                          /* egress worker alive and not in offline mode */
    bool endpoint_ready[POLICY_MAX_ENDPOINTS];   /* breaker allows and not tried already in this request */
    bool endpoint_tried[POLICY_MAX_ENDPOINTS];
    bool endpoint_denied[POLICY_MAX_ENDPOINTS];  /* to the API key */
    unsigned found;                        /* set of enum pii that raised the label */
    struct policy_features features;
    struct policy_signals signals;         /* STREAM and END */
};

/* Reason codes: why the chosen route, and why a candidate was rejected. X(code, "one plain sentence") in reasons.c. */
enum reason {
    REASON_NONE,
    /* chosen */
    REASON_LOCAL_ONLY_MODE, REASON_CLOUD_ONLY_MODE, REASON_MODEL_ASKED_LOCAL, REASON_MODEL_ASKED_CLOUD,
    REASON_LABEL_KEEPS_LOCAL,      /* nothing allowed to take this label: local */
    REASON_NO_ENDPOINT,            /* none configured: local */
    REASON_CLOUD_UNAVAILABLE,      /* allowed, but breaker open / offline: local; degraded if unsure */
    REASON_TRY_LOCAL,              /* local first, its confidence will be judged */
    REASON_PREFER_LOCAL,
    REASON_TOO_HARD,               /* features say the local model will fail: cloud at once */
    REASON_DOES_NOT_FIT,           /* local context too short: cloud */
    REASON_CONFIDENT,              /* local answer kept */
    REASON_UNSURE_STREAM,          /* abandoned in the held window */
    REASON_UNSURE_END,             /* complete answer below the threshold */
    REASON_UNSURE_KEPT,            /* below the threshold but nowhere to go; degraded unless that is policy's own will */
    REASON_LOCAL_DOWN, REASON_LOCAL_FAILED,     /* cloud because the engine is not there / failed */
    REASON_CLOUD_FAILED_LOCAL,     /* the local answer after the cloud failed: degraded */
    REASON_NEXT_ENDPOINT,          /* another endpoint after one failed */
    /* refused */
    REASON_NOTHING_ALLOWED,        /* no route is allowed and available */
    /* rejected candidates */
    REASON_REJ_LABEL, REASON_REJ_MODE, REASON_REJ_ASK, REASON_REJ_BREAKER, REASON_REJ_OFFLINE, REASON_REJ_TRIED,
    REASON_REJ_RELEASED, REASON_REJ_LOCAL_DOWN, REASON_REJ_LOCAL_FITS, REASON_REJ_LOCAL_TRIED, REASON_REJ_SCORE, REASON_REJ_ORDER,
    REASON_REJ_KEY,
    REASON_COUNT
};
const char *reason_code(enum reason r);        /* "label-keeps-local": stable, in headers, rows and metrics */
const char *reason_sentence(enum reason r);    /* for people */
int reason_from_code(enum reason *ret, const char *code);

/* rejected: REASON_NONE for the chosen route alone; REJ_SCORE and REJ_ORDER: allowed, but another was chosen; any other: the
 * first hard gate that forbids it. */
struct policy_candidate { enum route route; int endpoint; /* -1: local */ enum reason rejected; };

struct policy_decision {
    enum stage stage;
    enum route route;
    int endpoint;                    /* index, -1 unless ROUTE_CLOUD */
    enum reason reason;
    bool degraded;                   /* local, where with everything up policy would have asked, or might have asked, a cloud */
    bool hold;                       /* hold back hold_tokens of a local answer: it may still be escalated */
    double score, threshold;         /* P(local right) or 1 - p_hard, and what it was held against; NAN: no score took part */
    struct policy_candidate candidates[POLICY_MAX_ENDPOINTS + 1];
    size_t n_candidates;
};
/* Never fails: the worst answer is ROUTE_NONE with the reason. Total over all inputs. */
void policy_decide(struct policy_decision *ret, const struct policy_config *c, const struct policy_input *in);

/* The input's features and signals, and the decision's candidates, as JSON for the record (new references). */
json_t *policy_features_json(const struct policy_input *in);
json_t *policy_candidates_json(const struct policy_decision *d, const struct policy_config *c);

/* Plain sentences about one recorded request, in order, for `ternctl why`: an array of strings (new reference). `row` is the
 * JSON of store_why() in store/store.h. Says in one line what to set when a label or a missing endpoint kept it local. */
json_t *policy_explain(const json_t *row);
