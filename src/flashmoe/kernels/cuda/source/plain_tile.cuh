// A tile of a product of many rows with plain weights: 64 outputs by 64 rows, in float32.
//
// Owns the way of both through shared memory. Each sum is taken input after input by one thread, so
// that it does not depend on how many rows pass together. Blocks of 256 threads, 4 by 4 sums each.

#pragma once

#include "matrix.cuh"

constexpr int kPlainTile = 64, kPlainInputs = 32;

// Input after input; 16 bytes further than the tile, so that rows of four stay aligned.
struct PlainStep {
    alignas(16) float weights[kPlainInputs][kPlainTile + 4];
    alignas(16) float rows[kPlainInputs][kPlainTile + 4];
};

// As panel_tile(), of rows x (., m.columns).
DEVICE void plain_tile(const Matrix& m, int first_output, const float* x, const int* chosen,
                       int first_place, int count, const float* residual, float* y,
                       PlainStep& step) {
    const int thread = static_cast<int>(threadIdx.x), mine = thread % 64, part = thread / 64 * 8;
    const int place = first_place + min(mine, count - 1);
    const int64_t row = chosen == nullptr ? place : chosen[place];
    const int64_t output = min(first_output + mine, m.rows - 1);
    const int outputs = thread % 16 * 4, rows = thread / 16 * 4;
    float total[4][4] = {};
    for (int k = 0; k < m.columns; k += kPlainInputs) {
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            const auto v = *reinterpret_cast<const float4*>(x + row * m.columns + k + part + i);
            step.rows[part + i][mine] = v.x, step.rows[part + i + 1][mine] = v.y;
            step.rows[part + i + 2][mine] = v.z, step.rows[part + i + 3][mine] = v.w;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
            step.weights[part + i][mine] =
                load_float(m.weight, output * m.columns + k + part + i, m.type);
        block_barrier();
#pragma unroll
        for (int i = 0; i < kPlainInputs; ++i) {
            const auto w = *reinterpret_cast<const float4*>(&step.weights[i][outputs]);
            const auto v = *reinterpret_cast<const float4*>(&step.rows[i][rows]);
            const float ws[4] = {w.x, w.y, w.z, w.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int a = 0; a < 4; ++a)
#pragma unroll
                for (int b = 0; b < 4; ++b) total[a][b] = fmaf(ws[b], vs[a], total[a][b]);
        }
        block_barrier();
    }
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b) {
            if (rows + a >= count || first_output + outputs + b >= m.rows) continue;
            const int64_t at =
                int64_t{first_place + rows + a} * m.rows + first_output + outputs + b;
            y[at] = residual == nullptr ? total[a][b] : residual[at] + total[a][b];
        }
}
