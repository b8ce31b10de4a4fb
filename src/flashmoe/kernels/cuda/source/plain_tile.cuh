// A tile of a product of many rows with plain weights: 64 outputs by 64 rows, in float32.
//
// Owns the way of both through shared memory: while a step of 32 inputs is multiplied, the next one
// is on its way to registers. Each sum is taken input after input by one thread, so
// that it does not depend on how many rows pass together. Blocks of 256 threads, 4 by 4 sums each.

#pragma once

#include "matrix.cuh"

constexpr int kPlainTile = 64, kPlainInputs = 32;

// Input after input; 16 bytes further than the tile, so that rows of four stay aligned.
struct PlainStep {
    alignas(16) float weights[kPlainInputs][kPlainTile + 4];
    alignas(16) float rows[kPlainInputs][kPlainTile + 4];
};

// Eight inputs of an output and of a row, as they come.
struct PlainShare {
    uint4 weights[2], rows[2];

    DEVICE void load(const uint8_t* weight, int type, const float* row) {
        weights[0] = load_once(weight);
        if (type == kF32) weights[1] = load_once(weight + 16);
        rows[0] = load_once(row), rows[1] = load_once(row + 4);
    }
    DEVICE void put(PlainStep& step, int type, int input, int at) const {
        const uint32_t w[8] = {weights[0].x, weights[0].y, weights[0].z, weights[0].w,
                               weights[1].x, weights[1].y, weights[1].z, weights[1].w};
        const uint32_t x[8] = {rows[0].x, rows[0].y, rows[0].z, rows[0].w,
                               rows[1].x, rows[1].y, rows[1].z, rows[1].w};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const auto bits = static_cast<uint16_t>(w[i / 2] >> (16 * (i % 2)));
            step.weights[input + i][at] = type == kF32   ? __uint_as_float(w[i])
                                          : type == kF16 ? half_to_float(bits)
                                                         : bf16_to_float(bits);
            step.rows[input + i][at] = __uint_as_float(x[i]);
        }
    }
};

// Of 64 outputs from `first_output` on and `count` places, at most 64, from `first_place` on: rows
// of y, `residual` added, where there is one (it may be y itself). A place's activations are its
// row of x, or row chosen[place].
DEVICE void plain_tile(const Matrix& m, int first_output, const float* x, const int* chosen,
                       int first_place, int count, const float* residual, float* y,
                       PlainStep& step) {
    const int thread = static_cast<int>(threadIdx.x), mine = thread % 64, part = thread / 64 * 8;
    const int place = first_place + min(mine, count - 1), bytes = m.type == kF32 ? 4 : 2;
    const int64_t output = min(first_output + mine, m.rows - 1);
    const float* row = x + int64_t{chosen == nullptr ? place : chosen[place]} * m.columns + part;
    const uint8_t* weight = m.weight + (output * m.columns + part) * bytes;
    const int outputs = thread % 16 * 4, rows = thread / 16 * 4;
    float total[4][4] = {};
    PlainShare share = {};
    share.load(weight, m.type, row);
    for (int k = 0; k < m.columns; k += kPlainInputs) {
        share.put(step, m.type, part, mine);
        block_barrier();
        if (k + kPlainInputs < m.columns)
            share.load(weight + int64_t{k + kPlainInputs} * bytes, m.type, row + k + kPlainInputs);
#pragma unroll
        for (int i = 0; i < kPlainInputs; ++i) {
            const auto w = *reinterpret_cast<const float4*>(&step.weights[i][outputs]);
            const auto v = *reinterpret_cast<const float4*>(&step.rows[i][rows]);
            const float ws[4] = {w.x, w.y, w.z, w.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int n = 0; n < 16; ++n)
                total[n / 4][n % 4] = fmaf(ws[n % 4], vs[n / 4], total[n / 4][n % 4]);
        }
        block_barrier();
    }
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        const int p = rows + n / 4, o = first_output + outputs + n % 4;
        if (p >= count || o >= m.rows) continue;
        const int64_t at = int64_t{first_place + p} * m.rows + o;
        y[at] = residual == nullptr ? total[n / 4][n % 4] : residual[at] + total[n / 4][n % 4];
    }
}
