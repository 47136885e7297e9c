/* Constrained answers: what the files between a JSON Schema and a set of allowed tokens share.
 *
 *     schema.c     JSON Schema to a grammar, schema_types.c by its types, pattern.c (with regex.c) and number.c for
 *                  strings and numbers that are bounded
 *     grammar.c    the nodes, weighed
 *     reading.c    reads bytes by them; spot.c: within a terminal
 *     lexicon.c    the vocabulary as a tree of bytes
 *     mask.c       one answer: which tokens may come
 *     tools.c      tools and formats: what the model is told, and the grammar of what it may say
 *     reply.c      one answer to a request: what may come, and which channel it belongs to
 *
 * A grammar and a lexicon are constant once built and may be shared; a mask is one answer's. */
#pragma once

#include "base/arena.h"
#include "base/chat.h"
#include "base/err.h"
#include "engine/internal.h"

/* What compiling one schema, or all of a request's tools together, may cost: elementary steps of the automata's
 * construction, about 5 ns each. */
#define GRAMMAR_WORK (4u << 20)

/* ---- pattern.c: a regular expression as a table ------------------------------------------------------------------
 * Over the bytes of a string as it is after unescaping, in UTF-8. State 0 is the start; from every state a match can be
 * reached. */
#define PATTERN_DEAD UINT16_MAX
struct pattern {
    uint8_t class_of[256];
    uint16_t n_classes, n;
    uint16_t *next;           /* (n, n_classes): a state or PATTERN_DEAD */
    uint16_t *distance;       /* (n): how many bytes of JSON the nearest match is away, 0: this is one */
};
/* The strings in which `regex`, ECMA-262's syntax without what is not regular, matches somewhere. Where dialects differ
 * in what a class contains, what all of them agree on. Everything lives in `a`. *work is counted down. 0, -ENOMEM, or
 * -EINVAL with words in *err. */
int pattern_new(struct pattern **ret, const char *regex, struct arena *a, size_t *work, struct err *err);
/* The strings both match; -EINVAL: there is none. */
int pattern_both(struct pattern **ret, const struct pattern *x, const struct pattern *y, struct arena *a, size_t *work,
                 struct err *err);
static inline uint16_t pattern_step(const struct pattern *p, uint16_t state, uint8_t byte)
{
    return p->next[state * p->n_classes + p->class_of[byte]];
}
/* The regular expression of a `format` of JSON Schema, or NULL: not one we know. */
const char *pattern_of_format(const char *format);

/* ---- number.c: numbers within bounds, digit by digit ------------------------------------------------------------
 * Written without an exponent, at most 18 digits in all. A state is at the beginning {0, 0}. */
struct number {
    unsigned fraction;        /* digits behind the point, at most */
    int64_t min, max;         /* in units of the last of those digits */
    int64_t steps[19];        /* what divides a number that ends in so many zeros (up to fraction) */
};
struct number_state { uint64_t value; uint32_t at; };     /* of the digits so far; number.c's own coding */
/* From the keywords of a schema of type number or integer. 0, or -EINVAL with words in *err. */
int number_init(struct number *ret, const json_t *schema, bool integer, struct err *err);
/* Does the byte go on to what can still become such a number? If so, s is what it becomes. */
bool number_step(const struct number *n, struct number_state *s, uint8_t byte);
unsigned number_missing(const struct number *n, struct number_state s);   /* fewest bytes to its end; 0: may end here */

/* ---- grammar.c -------------------------------------------------------------------------------------------------- */
#define GRAMMAR_DEPTH 64                    /* objects and arrays inside each other, in what is written */
#define GRAMMAR_THREADS 128                 /* readings of what was written so far */
#define GRAMMAR_NEVER (1u << 24)            /* a price that no answer can pay */

/* A text that is written as it is. Sorted where several are to be chosen from. */
struct text { const char *s; uint32_t len; uint32_t *price; };   /* price (len): tokens to write s + i; NULL: bytes */

/* key: a text `,"name":`. closes: none behind it is required. after: price of what must still follow its value. */
struct property { uint32_t key, value, after; bool required, closes; };
enum node_kind { NODE_TEXT, NODE_STRING, NODE_PATTERN, NODE_NUMBER, NODE_OBJECT, NODE_ARRAY, NODE_MAP, NODE_ANY_OF };
struct node {
    enum node_kind kind;
    uint32_t price, height;   /* fewest tokens it is written with, objects and arrays that then stand in each other */
    union {
        struct { uint32_t lo, hi; } text;                         /* one of texts[lo..hi) */
        struct { uint32_t min, max; } string;                     /* characters */
        const struct pattern *pattern;                            /* a string that matches */
        const struct number *number;
        struct { struct property *properties; uint32_t n, open; } object;   /* in order; open: price of all inside */
        struct { uint32_t item, min, max; } array;
        struct { uint32_t value; } map;                           /* an object with any keys */
        struct { uint32_t *alternatives, n; } any_of;             /* none of them NODE_ANY_OF once finished */
    };
};
struct grammar {
    struct arena arena;
    struct node *nodes;
    struct text *texts;
    size_t n_nodes, cap_nodes, n_texts, cap_texts, root;
    struct known_pattern {
        const char *regex;
        const struct pattern *pattern;
        const struct known_pattern *next;
    } *patterns;
    size_t any_object;        /* schema.c's: any JSON is the node before it; 0: not there yet */
};
int grammar_new(struct grammar **ret);                            /* 0 or -ENOMEM */
void grammar_free(struct grammar *g);
static inline void grammar_freep(struct grammar **g) { grammar_free(*g); }
int64_t grammar_node(struct grammar *g, struct node node);        /* its number, or -ENOMEM */
int64_t grammar_text(struct grammar *g, const char *s, size_t len);   /* copies; its number, or -ENOMEM */
/* All nodes are there, `root` is what an answer is: straighten, and weigh. Where prices is given, it fills the price of
 * a text (len entries). -EINVAL: nothing can ever be an answer, or a node is itself without anything around it. */
struct lexicon;
int grammar_finish(struct grammar *g, size_t root, const struct lexicon *prices, struct err *err);

static inline uint32_t price_bounded(uint64_t price) { return (uint32_t)MIN(price, GRAMMAR_NEVER); }
/* Of the cheapest of texts[lo..hi), from s + at on; and what is left of an array that has `count` items. */
uint32_t texts_price(const struct grammar *g, uint32_t lo, uint32_t hi, uint32_t at);
uint32_t array_rest(const struct grammar *g, const struct node *n, uint64_t count);
/* Nodes and texts that every grammar has: a text by its numbers, a string of any characters; the marks. */
enum { ANY_TEXT, ANY_STRING };
enum { OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY, COMMA, COLON };

/* ---- spot.c ----------------------------------------------------------------------------------------------------- */
/* Where in a terminal: its node, and what spot.c makes of the rest; all zero at the beginning. */
struct spot { uint32_t node, at; uint64_t state; };
enum outcome { REFUSED, GOES_ON, IS_OVER };
enum outcome spot_step(const struct grammar *g, struct spot *s, uint8_t byte);
uint32_t spot_price(const struct grammar *g, const struct spot *s);
/* Numbers do not say where they end, nor does a text that another one begins with. */
bool spot_may_end(const struct grammar *g, const struct spot *s);
void spot_bytes(const struct grammar *g, const struct spot *s, uint64_t set[4]);   /* as thread_bytes() */
bool spot_in_string(const struct grammar *g, const struct spot *s, uint32_t *ret_room, uint32_t *ret_need);
struct spot text_spot(uint32_t lo, uint32_t hi, uint32_t at);     /* in texts[lo..hi), which begin alike up to `at` */
/* How many characters of a string of any characters these bytes begin; -1: they cannot stand there, or close it. */
int spot_scan_string(const char *s, size_t len);

/* ---- reading.c -------------------------------------------------------------------------------------------------- */
/* A thread is one way to read what was written: the terminal it is in and the objects and arrays around it.
 * Frames are constant; whoever makes them says where they live. */
struct outer { struct spot spot; const struct outer *up; uint32_t price; uint16_t depth; bool kept; };
struct thread { struct spot top; const struct outer *up; uint32_t root; };      /* root: which node all of it is */
/* Threads and frames of one reading, as two stacks: what is made later is dropped first. Full: no more are added, which
 * narrows what may be written and never breaks it. */
struct reading {
    const struct grammar *grammar;
    struct thread *threads;
    struct outer *frames;
    size_t n_threads, max_threads, n_frames, max_frames;
    size_t base;              /* where those that are being made begin */
    uint32_t root;            /* and theirs */
};
void grammar_begin(struct reading *r);                            /* push the threads of an answer's beginning */
/* Push what threads[first..last) become by a byte. */
void grammar_step(struct reading *r, size_t first, size_t last, uint8_t byte);
/* Add to a set of 256 the bytes that may come next, and maybe others. */
void thread_bytes(const struct grammar *g, const struct thread *t, uint64_t set[4]);
bool thread_may_end(const struct grammar *g, const struct thread *t);       /* the answer may end here */
bool thread_must_end(const struct thread *t);                     /* and nothing can follow */
uint32_t thread_price(const struct grammar *g, const struct thread *t);     /* fewest tokens to the answer's end */
bool thread_same(const struct thread *a, const struct thread *b);
/* In the plain middle of a string of any characters? How many more it may have, and must (0: it may be closed). */
bool thread_in_string(const struct grammar *g, const struct thread *t, uint32_t *ret_room, uint32_t *ret_need);

/* ---- schema.c --------------------------------------------------------------------------------------------------- */
/* Add what the schema describes; `path` is what stands before its paths in *err. Its node, -ENOMEM, or -EINVAL with
 * *err naming path and keyword. *work as pattern_new(). */
int64_t schema_add(struct grammar *g, const json_t *schema, const char *path, size_t *work, struct err *err);
int64_t schema_add_any(struct grammar *g, bool object);           /* any JSON, or any object; as schema_add */
