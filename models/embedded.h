/* The model that ships inside the executable (GGUF, see models/README.md): bytes [embedded_model, embedded_model_end),
 * 64 KiB aligned, read-only and file-backed, so it costs memory only where it is read. */
#pragma once

extern const unsigned char embedded_model[];
extern const unsigned char embedded_model_end[];
