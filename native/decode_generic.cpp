// The vector code of a decode step in portable vectors of four floats: SSE2, NEON, or whatever the
// compiler has.

#define FLASHMOE_LANES 4
#define FLASHMOE_TABLE decode_generic

#include "decode_rows.h"
