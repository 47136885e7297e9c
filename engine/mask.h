/* One answer that is held to a grammar: which tokens may come next. */
#pragma once

#include "engine/grammar.h"
#include "engine/lexicon.h"

struct mask;
/* Borrows both, which belong together (grammar_finish()). 0 or -ENOMEM. */
int mask_new(struct mask **ret, const struct grammar *g, const struct lexicon *l);
void mask_free(struct mask *m);
static inline void mask_freep(struct mask **m) { mask_free(*m); }
/* The tokens that may come, as a set of l->words words that is good until the next call; an end of the answer is among
 * them where it may end. With so many tokens left, this one included, only those are in it after which there is time to
 * finish; where there is none, those that come nearest. NULL: none, which only a vocabulary with gaps brings about. */
const uint64_t *mask_allowed(struct mask *m, size_t budget);
/* The bytes that were chosen. 0; -EINVAL: they are not allowed, and nothing changed; -ENOMEM. */
int mask_accept(struct mask *m, const char *s, size_t len);
bool mask_reads(struct mask *m, const char *s, size_t len);      /* would they be accepted? */
bool mask_whole(const struct mask *m);               /* nothing can follow */
bool mask_may_end(const struct mask *m);
/* Is any reading, and is every one, of a node from lo to below hi? Of the grammar's alternatives, that is. */
void mask_roots(const struct mask *m, uint32_t lo, uint32_t hi, bool *ret_any, bool *ret_all);
