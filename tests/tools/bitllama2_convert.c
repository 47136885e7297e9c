/* bitllama2_convert WEIGHTS.msb.bin tok512.bin OUT.gguf: a trained model of bitllama2.c as a GGUF that the engine runs. */
#include <stdio.h>
#include "tests/engine/bitllama2.h"
#include "tests/engine/read_file.h"

int main(int argc, char **argv)
{
    cleanup(freep) uint8_t *weights = NULL, *tokens = NULL, *file = NULL;
    size_t n_weights, n_tokens, size;
    FILE *out;

    if (argc != 4) {
        fprintf(stderr, "usage: bitllama2_convert WEIGHTS.msb.bin tok512.bin OUT.gguf\n");
        return 2;
    }
    weights = read_file(argv[1], &n_weights);
    tokens = read_file(argv[2], &n_tokens);
    out = weights && tokens ? fopen(argv[3], "wb") : NULL;
    if (!out) {
        perror("bitllama2_convert");
        return 1;
    }
    file = bitllama2_file(weights, tokens, &size);
    if (fwrite(file, 1, size, out) != size || fclose(out)) {
        perror(argv[3]);
        return 1;
    }
    return 0;
}
