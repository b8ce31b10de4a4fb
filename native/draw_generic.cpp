// The vector code of the draw in portable vectors of two numbers: SSE2, NEON, or whatever the
// compiler has.

#define FLASHMOE_DOUBLES 2
#define FLASHMOE_TABLE draw_generic

#include "draw_rows.h"
