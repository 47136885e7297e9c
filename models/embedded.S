/* The shipped model between two symbols, on pages of its own (64 KiB: the largest page of a supported machine) so that
 * roles which must hold no model can unmap it. See models/embedded.h. */
        .section .rodata.tern_model, "a", %progbits
        .balign 65536
        .globl  embedded_model
        .hidden embedded_model
embedded_model:
        .incbin "tern-nano.gguf"
        .globl  embedded_model_end
        .hidden embedded_model_end
embedded_model_end:
        .balign 65536
        .section .note.GNU-stack, "", %progbits
