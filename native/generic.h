// The portable products: they run everywhere and round a weight twice, as the format defines it.

#pragma once

#include <cstddef>

#include "kernels.h"

namespace flashmoe::generic {

void matmul_affine(const float* x, std::size_t rows, const AffineMatrix& matrix, float* y,
                   int threads);

void matmul_plain(const float* x, std::size_t rows, const PlainMatrix& matrix, float* y,
                  int threads);

// Outputs [begin, end) of matmul_plain, on the calling thread.
void plain(const float* x, std::size_t rows, const PlainMatrix& matrix, std::size_t begin,
           std::size_t end, float* y);

// The codes of one row of weights, a byte each; `codes` has room for one and a half times as many.
void unpack(const AffineMatrix& matrix, std::size_t row, unsigned char* codes);

// An element of an array of scales or biases.
float number(Scalar type, const void* array, std::size_t index);

}  // namespace flashmoe::generic
