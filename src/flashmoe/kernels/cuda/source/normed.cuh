// The norm of one token's vector, made by every block anew in its own shared memory, where its
// products take it from: that costs less than a launch.
//
// Owns the layout there: what 32 lanes with a chunk each read at once lies side by side, and the
// fixed form is in the order of the weights' bits already. The sums are the same in every block,
// whatever the grid. Twin: rms_norm of kernels/reference.py.

#pragma once

#include "matrix.cuh"

constexpr int kNormThreads = 256;  // of a block

// Which layout weights of so many bits want: two are the same where this is.
DEVICE int layout_of(int bits) { return bits == 0 || bits == 2 || bits == 4 ? bits : 8; }

// `memory` has 8 bytes an input, aligned to 16.
struct Normed {
    unsigned char* memory;
    int chunks;

    // Behind the layout: x times the norm's weights, as they come, four a quad.
    DEVICE float4* weighted() const { return reinterpret_cast<float4*>(memory) + 8 * chunks; }

    // Half of every chunk's bytes of a plane; behind the planes scale and sum of each chunk.
    DEVICE uint4* half(int plane, int which) const {
        return reinterpret_cast<uint4*>(memory) + (2 * plane + which) * chunks;
    }
    DEVICE float2* ends() const { return reinterpret_cast<float2*>(half(3, 0)); }
    // The same room for plain weights: an eighth of every chunk's floats.
    DEVICE float4* eighth(int which) const {
        return reinterpret_cast<float4*>(memory) + which * chunks;
    }

    template <int bits>
    DEVICE void load(int chunk, FixedChunk& out) const {
        uint32_t* planes[3] = {out.high, out.middle, out.low};
#pragma unroll
        for (int p = 0; p < 3; ++p) {
            const uint4 a = half(p, 0)[chunk], b = half(p, 1)[chunk];
            planes[p][0] = a.x, planes[p][1] = a.y, planes[p][2] = a.z, planes[p][3] = a.w;
            planes[p][4] = b.x, planes[p][5] = b.y, planes[p][6] = b.z, planes[p][7] = b.w;
        }
        const float2 end = ends()[chunk];
        out.scale = end.x, out.sum = end.y;
    }
    DEVICE float4 load_floats(int chunk, int which) const { return eighth(which)[chunk]; }

    // Four numbers, in the order of arrange() where the weights are quantised.
    DEVICE void place(int quad, float4 x, const FixedQuad& fixed, int bits) const {
        const int chunk = quad / 8, part = quad % 8;
        if (bits == 0) {
            eighth(part)[chunk] = x;
            return;
        }
        auto* to = reinterpret_cast<unsigned char*>(half(0, part / 4) + chunk);
        const int plane = 32 * chunks, word = part % 4;  // of the half
        if (bits == 4) {
            to += 4 * (word & ~1) + 2 * (word & 1);
#pragma unroll
            for (int p = 0; p < 3; ++p, to += plane) {
                reinterpret_cast<uint16_t*>(to)[0] = static_cast<uint16_t>(fixed.even[p]);
                reinterpret_cast<uint16_t*>(to)[2] = static_cast<uint16_t>(fixed.odd[p]);
            }
        } else if (bits == 2) {
            to += word;
#pragma unroll
            for (int p = 0; p < 3; ++p, to += plane)
                for (int k = 0; k < 4; ++k)
                    to[4 * k] = static_cast<unsigned char>(fixed.word(p) >> 8 * k);
        } else {
            to += 4 * word;
#pragma unroll
            for (int p = 0; p < 3; ++p, to += plane)
                *reinterpret_cast<uint32_t*>(to) = fixed.word(p);
        }
        if (part == 0) ends()[chunk] = {fixed.scale, fixed.sum};
    }
};

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

// By a block of kNormThreads: x times the weights to where each thread finds its own again, and
// what those are to be multiplied with, 1 / sqrt(mean(x^2) + eps). `room` has 32 floats.
DEVICE float weigh(const float* x, const float* weight, float eps, Normed into, float* room) {
    const auto* from = reinterpret_cast<const float4*>(x);
    const auto* by = reinterpret_cast<const float4*>(weight);
    float squares = 0.0F;
#pragma unroll 4
    for (int quad = static_cast<int>(threadIdx.x); quad < 8 * into.chunks; quad += kNormThreads) {
        const float4 v = from[quad], w = by[quad];
        squares = squared(v, squares);
        into.weighted()[quad] = times(v, w);
    }
    const float mean = block_sum(squares, room) / static_cast<float>(32 * into.chunks);
    return 1.0F / sqrtf(mean + eps);
}

// The norm laid out for weights of `bits`, by the same block, whose threads may read all of it
// then.
DEVICE void lay_out(float factor, int bits, Normed into, Written also) {
    const int quads = 8 * into.chunks, thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int first = thread / 32 * 32; first < quads; first += kNormThreads) {  // by whole warps
        const int quad = first + thread % 32;
        const float4 v = into.weighted()[min(quad, quads - 1)];
        const float4 y = times(v, {factor, factor, factor, factor});
        const FixedQuad fixed(y);
        if (quad >= quads) break;
        into.place(quad, y, fixed, bits);
        if (also.floats != nullptr) also.place(quad, 32 * into.chunks, y, fixed);
    }
    block_barrier();
}
