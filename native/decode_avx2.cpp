// The vector code of a decode step with AVX2 and FMA.

#define FLASHMOE_LANES 8
#define FLASHMOE_TABLE decode_avx2

#include "decode_rows.h"
