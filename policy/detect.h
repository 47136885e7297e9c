/* What pii.c (what has a form) and detect.c (looking for it) share. */
#pragma once

#include "policy/privacy.h"

/* The text, and a candidate in it: [start, end). */
struct candidate { const char *text; size_t len, start, end; };

/* How to find one kind of thing; a type may have several rows, and an earlier row keeps its bytes from later ones, so
 * that a card is not a phone number as well. */
struct pii_row {
    enum pii type;
    const char *pattern;                       /* PCRE2, without UTF mode; what \K leaves is the candidate */
    bool (*check)(struct candidate *c);        /* is it one? It may move start and end. NULL: the form is enough */
    bool long_words;                           /* tried in runs of 16 and more of A-Za-z0-9_+/.- only */
};
extern const struct pii_row pii_rows[];
extern const size_t n_pii_rows;
