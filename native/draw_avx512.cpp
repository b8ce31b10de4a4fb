// The vector code of the draw with AVX-512.

#define FLASHMOE_DOUBLES 8
#define FLASHMOE_TABLE draw_avx512

#include "draw_rows.h"
