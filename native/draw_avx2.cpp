// The vector code of the draw with AVX2.

#define FLASHMOE_DOUBLES 4
#define FLASHMOE_TABLE draw_avx2

#include "draw_rows.h"
