// The gated delta net of a chunk with AVX2 and FMA.

#define FLASHMOE_LANES 8
#define FLASHMOE_TABLE delta_avx2

#include "chunk_delta_rows.h"
