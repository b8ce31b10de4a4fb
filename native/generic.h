// The portable products: they run everywhere and round a weight twice, as the format defines it.

#pragma once

#include <cstddef>

#include "kernels.h"

namespace flashmoe::generic {

void matmul_affine(const float* x, std::size_t rows, const AffineMatrix& matrix, float* y,
                   int threads);

void matmul_plain(const float* x, std::size_t rows, const PlainMatrix& matrix, float* y,
                  int threads);

}  // namespace flashmoe::generic
