// The gated delta net of a chunk with AVX-512.

#define FLASHMOE_LANES 16
#define FLASHMOE_TABLE delta_avx512

#include "chunk_delta_rows.h"
