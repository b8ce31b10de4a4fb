// What surrounds the mixer of one token: y = x + out(mixer(in(norm(x)))).
//
// Owns the order and the memory in between; the products and mixers are kernels.h's and decode.h's,
// bit for bit.

#pragma once

#include <functional>
#include <vector>

#include "decode.h"
#include "kernels.h"

namespace flashmoe {

struct Block {
    const float* norm;  // (hidden)
    float eps;
    std::vector<Matrix> inputs;  // (width, hidden) each
    Matrix out;                  // (hidden, width of the mixer's result)

    std::size_t hidden() const { return out_of(out); }
};

// Computes `mixed`, the inputs of Block::out, from the results of Block::inputs.
using Mixer = std::function<void(const std::vector<const float*>& inputs, float* mixed)>;

// x and y (hidden), which may not overlap.
void residual(const InstructionSet& set, const Block& block, const float* x, const Mixer& mixer,
              float* y, int threads);

}  // namespace flashmoe
