// The gated delta net of a chunk in portable vectors of four floats.

#define FLASHMOE_LANES 4
#define FLASHMOE_TABLE delta_generic

#include "chunk_delta_rows.h"
