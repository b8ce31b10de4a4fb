// One token's activations in a block's shared memory, laid out for its products.
//
// Owns the layout: what 32 lanes with a chunk each read at once lies side by side, and the fixed
// form is in the order of the weights' bits already.

#pragma once

#include "matrix.cuh"

// Which layout weights of so many bits want: two are the same where this is.
DEVICE int layout_of(int bits) { return bits == 0 || bits == 2 || bits == 4 ? bits : 8; }

// `memory` has 4 bytes an input, aligned to 16.
struct Ready {
    unsigned char* memory;
    int chunks;

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

    // Activations as they lie in global memory, for weights of `bits`: by a block, whose threads
    // may read all of it then.
    DEVICE void take_over(const Activations& x, int bits) const {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        if (bits == 0) {
            for (int i = thread; i < 8 * chunks; i += threads)
                eighth(i % 8)[i / 8] = x.load_floats(i / 8, i % 8);
        } else {
            for (int i = thread; i < 3 * chunks; i += threads) take_over(x.fixed, i, bits);
            for (int i = thread; i < chunks; i += threads)
                ends()[i] = {x.fixed.scales()[i], x.fixed.sums()[i]};
        }
        block_barrier();
    }

private:
    DEVICE void take_over(const Fixed& x, int number, int bits) const {
        const int plane = number / chunks, chunk = number % chunks;
        const auto* from = reinterpret_cast<const uint4*>(x.plane(plane) + 32 * chunk);
        const uint4 a = from[0], b = from[1];
        uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        if (bits == 4) arrange<4>(words);
        if (bits == 2) arrange<2>(words);
        half(plane, 0)[chunk] = {words[0], words[1], words[2], words[3]};
        half(plane, 1)[chunk] = {words[4], words[5], words[6], words[7]};
    }
};
