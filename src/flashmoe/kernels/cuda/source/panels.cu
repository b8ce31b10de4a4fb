// Products of many rows, a prompt's, with resident matrices.
//
// Twin: matmul of kernels/reference.py; of affine matrices, the same bits as native/panels.h. A
// launch multiplies up to four matrices of one kind: affine of one group size, or plain.

#include "panel_tile.cuh"
#include "plain_tile.cuh"

// Eight values from x on; silu of them times those of `up`, where there are any.
DEVICE void take_eight(const float* x, const float* up, int64_t at, float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const auto v = *reinterpret_cast<const float4*>(x + at + i);
        values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
    }
    if (up == nullptr) return;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const auto v = *reinterpret_cast<const float4*>(up + at + i);
        values[i] = silu(values[i]) * v.x, values[i + 1] = silu(values[i + 1]) * v.y;
        values[i + 2] = silu(values[i + 2]) * v.z, values[i + 3] = silu(values[i + 3]) * v.w;
    }
}

// x (rows, columns), or silu(x) * up, in fixed point. Blocks of eight rows by 256 columns.
KERNEL(256)
prepare(const float* __restrict__ x, const float* __restrict__ up, int rows, int columns, int group,
        uint8_t* __restrict__ into) {
    const int thread = static_cast<int>(threadIdx.x);
    const int row = static_cast<int>(blockIdx.x) * 8 + thread / 32;
    const int column = static_cast<int>(blockIdx.y) * 256 + thread % 32 * 8;
    if (row >= rows) return;
    float values[8] = {};
    if (column < columns) take_eight(x, up, int64_t{row} * columns + column, values);
    fix_row(values, row, column, Planes{into, rows, columns, group});
}

// x = silu(x) * up, both (rows, columns). Blocks as above.
KERNEL(256) swiglu(float* x, const float* __restrict__ up, int rows, int columns) {
    const int thread = static_cast<int>(threadIdx.x);
    const int row = static_cast<int>(blockIdx.x) * 8 + thread / 32;
    const int column = static_cast<int>(blockIdx.y) * 256 + thread % 32 * 8;
    if (row >= rows || column >= columns) return;
    float values[8];
    const int64_t at = int64_t{row} * columns + column;
    take_eight(x, up, at, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[at + i] = values[i];
}

// Which of the matrices the block multiplies; `first` of each is its first block.
DEVICE int which_matrix(const Matrices& matrices) {
    int which = 0;
    while (which + 1 < matrices.count &&
           static_cast<int>(blockIdx.y) >= matrices.all[which + 1].first)
        ++which;
    return which;
}

DEVICE float* which_result(int which, float* y0, float* y1, float* y2, float* y3) {
    return which == 0 ? y0 : which == 1 ? y1 : which == 2 ? y2 : y3;
}

// Blocks of 64 rows (x) by 128 outputs (y).
template <int group>
DEVICE void product(const Matrices& matrices, const uint8_t* planes, int rows,
                    const float* residual, float* y0, float* y1, float* y2, float* y3,
                    unsigned char* shared) {
    const int first = static_cast<int>(blockIdx.x) * kTileRows;
    float total[2][4][4] = {};
    {
        const Matrix m = matrices.all[which_matrix(matrices)];
        const Planes x{const_cast<uint8_t*>(planes), rows, m.columns, group};
        multiply_tile<group>(m, (static_cast<int>(blockIdx.y) - m.first) * kTileOutputs, x,
                             copied_row(nullptr, first, min(kTileRows, rows - first)), shared,
                             total);
    }
    const int which = which_matrix(matrices);
    const Matrix& m = matrices.all[which];
    put_tile(total, (static_cast<int>(blockIdx.y) - m.first) * kTileOutputs, m.rows, first,
             min(kTileRows, rows - first), residual, which_result(which, y0, y1, y2, y3));
}

KERNEL_TOGETHER(256, 2)
product_32(GIVEN Matrices matrices, const uint8_t* __restrict__ planes, int rows,
           const float* residual, float* y0, float* y1, float* y2, float* y3) {
    DYNAMIC_SHARED(shared);
    product<32>(matrices, planes, rows, residual, y0, y1, y2, y3, shared);
}

KERNEL_TOGETHER(256, 2)
product_64(GIVEN Matrices matrices, const uint8_t* __restrict__ planes, int rows,
           const float* residual, float* y0, float* y1, float* y2, float* y3) {
    DYNAMIC_SHARED(shared);
    product<64>(matrices, planes, rows, residual, y0, y1, y2, y3, shared);
}

KERNEL(256)
product_128(GIVEN Matrices matrices, const uint8_t* __restrict__ planes, int rows,
            const float* residual, float* y0, float* y1, float* y2, float* y3) {
    DYNAMIC_SHARED(shared);
    product<128>(matrices, planes, rows, residual, y0, y1, y2, y3, shared);
}

// Blocks of 64 rows by 64 outputs.
KERNEL(256)
product_plain(GIVEN Matrices matrices, const float* __restrict__ x, int rows, const float* residual,
              float* y0, float* y1, float* y2, float* y3) {
    __shared__ PlainStep step;
    const int which = which_matrix(matrices), first = static_cast<int>(blockIdx.x) * 64;
    const Matrix m = matrices.all[which];
    plain_tile(m, (static_cast<int>(blockIdx.y) - m.first) * 64, x, nullptr, first,
               min(64, rows - first), residual, which_result(which, y0, y1, y2, y3), step);
}
