// A mixer between its norm and its projections.

#include "block.h"

#include <memory>

#include "dispatch.h"

namespace flashmoe {

void residual(const InstructionSet& set, const Block& block, const float* x, const Mixer& mixer,
              float* y, int threads) {
    const std::size_t hidden = block.hidden(), mixed = in_of(block.out);
    std::size_t floats = hidden + mixed;
    for (const Matrix& each : block.inputs) floats += out_of(each);
    const auto memory = std::make_unique_for_overwrite<float[]>(floats);
    float *normed = memory.get(), *result = normed + hidden, *next = result + mixed;
    std::vector<Product> products;
    std::vector<const float*> inputs;
    for (const Matrix& each : block.inputs) {
        products.push_back({&each, next});
        inputs.push_back(next);
        next += out_of(each);
    }
    decode_of(set).rms_norm(x, 1, hidden, block.norm, block.eps, normed);
    project(set, normed, 1, products, threads);
    mixer(inputs, result);
    project(set, result, 1, {{&block.out, y}}, threads);
    for (std::size_t i = 0; i < hidden; ++i) y[i] += x[i];
}

}  // namespace flashmoe
