/* Identifiers as the ULID specification lays them out: ten characters of time, sixteen of chance. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include "base/id.h"

static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

void random_bytes(void *out, size_t n)
{
    uint8_t *p = out;

    while (n) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno != EINTR)
            abort();
        if (got > 0) {
            p += got;
            n -= (size_t)got;
        }
    }
}

void id_new(char out[ID_BYTES], uint64_t wall_usec)
{
    uint64_t msec = (wall_usec / USEC_PER_MSEC) & ((1ULL << 48) - 1);
    uint8_t chance[16];

    random_bytes(chance, sizeof(chance));
    for (int i = 9; i >= 0; i--, msec >>= 5)
        out[i] = alphabet[msec & 31];
    for (int i = 0; i < 16; i++)
        out[10 + i] = alphabet[chance[i] & 31];
    out[26] = 0;
}

int id_valid(const char *s)
{
    return s && strlen(s) == ID_BYTES - 1 && strspn(s, alphabet) == ID_BYTES - 1;
}
