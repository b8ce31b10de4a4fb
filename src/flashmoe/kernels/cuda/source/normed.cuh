// The norm of one token's vector, made by every block anew in its own shared memory, where its
// products take it from: that costs less than a launch. The sums are the same in every block,
// whatever the grid. Twin: rms_norm of kernels/reference.py.

#pragma once

#include "ready.cuh"

// Where the norm goes besides, for kernels to come: floats and fixed; or nowhere.
struct Written {
    float* floats;
    uint8_t* fixed;

    DEVICE void place(int quad, int columns, float4 x, const FixedQuad& made) const {
        const Fixed into{fixed, columns};
        reinterpret_cast<float4*>(floats)[quad] = x;
#pragma unroll
        for (int p = 0; p < 3; ++p) reinterpret_cast<uint32_t*>(into.plane(p))[quad] = made.word(p);
        if (quad % 8 != 0) return;
        into.scales()[quad / 8] = made.scale;
        into.sums()[quad / 8] = made.sum;
    }
};

DEVICE float squared(float4 x, float sum) {
    return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, sum))));
}
DEVICE float4 times(float4 x, float4 y) { return {x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w}; }

// By a block: x times the weights to `into`, 16 bytes a quad, where each thread finds its own
// again, and what those are to be multiplied with, 1 / sqrt(mean(x^2) + eps). `room` has 32 floats.
DEVICE float weigh(const float* x, const float* weight, float eps, int quads, float4* into,
                   float* room) {
    const auto* from = reinterpret_cast<const float4*>(x);
    const auto* by = reinterpret_cast<const float4*>(weight);
    float squares = 0.0F;
#pragma unroll 4
    for (int quad = static_cast<int>(threadIdx.x); quad < quads;
         quad += static_cast<int>(blockDim.x)) {
        const float4 v = from[quad], w = by[quad];
        squares = squared(v, squares);
        into[quad] = times(v, w);
    }
    const float mean = block_sum(squares, room) / static_cast<float>(4 * quads);
    return 1.0F / sqrtf(mean + eps);
}

// The norm laid out for weights of `bits`, by the same block, whose threads may read all of it
// then.
DEVICE void lay_out(const float4* weighted, float factor, int bits, Ready into, Written also) {
    const int quads = 8 * into.chunks, thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int first = thread / 32 * 32; first < quads;
         first += static_cast<int>(blockDim.x)) {  // by whole warps
        const int quad = first + thread % 32;
        const float4 v = weighted[min(quad, quads - 1)];
        const float4 y = times(v, {factor, factor, factor, factor});
        const FixedQuad fixed(y);
        if (quad >= quads) break;
        into.place(quad, y, fixed, bits);
        if (also.floats != nullptr) also.place(quad, 32 * into.chunks, y, fixed);
    }
    block_barrier();
}
