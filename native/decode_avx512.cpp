// The vector code of a decode step with AVX-512.

#define FLASHMOE_LANES 16
#define FLASHMOE_TABLE decode_avx512

#include "decode_rows.h"
