// One token: embedding, norms, products, and the sum that is the residual stream.
//
// Every kernel's twin is in kernels/reference.py. Vectors are float32; `fixed` arrays as fixed.cuh
// says. Plain weights want columns in multiples of 32 too.

#include "matrix.cuh"

constexpr int kRows = 4;   // rows a warp multiplies at once
constexpr int kWarps = 4;  // warps a block of project()

// x = row `given[0]` of the embedding, and the step's own numbers taken over: `given` is the host's
// memory, `input` (token, position, step, slots taken and offered) the device's. Blocks of 256
// threads, one an element.
KERNEL(256)
lookup(GIVEN Matrix m, const int* __restrict__ given, int* __restrict__ input,
       float* __restrict__ x) {
    if (blockIdx.x == 0 && threadIdx.x < 5) input[threadIdx.x] = given[threadIdx.x];
    const int column = static_cast<int>(blockIdx.x * 256 + threadIdx.x);
    if (column >= m.columns) return;
    x[column] = weight_at(m, given[0], column);
}

// y = x / sqrt(mean(x^2) + eps) * weight, as floats and fixed. One block.
KERNEL(1024)
rms_norm(const float* __restrict__ x, const float* __restrict__ weight, float eps, int columns,
         float* __restrict__ y, uint8_t* __restrict__ fixed) {
    __shared__ float room[32];
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    float squares = 0.0F;
    for (int i = thread; i < columns; i += threads) squares = fmaf(x[i], x[i], squares);
    const float mean = block_sum(squares, room) / static_cast<float>(columns);
    const float factor = 1.0F / sqrtf(mean + eps);
    for (int i = thread; i < columns; i += threads) {
        const float value = x[i] * factor * weight[i];
        y[i] = value;
        fix(value, i / 32, Fixed{fixed, columns});
    }
}

// x (columns) as fixed, a warp a chunk.
KERNEL(128) fix_vector(const float* __restrict__ x, int columns, uint8_t* __restrict__ fixed) {
    const int chunk = static_cast<int>(blockIdx.x * 128 + threadIdx.x) / 32;
    if (chunk >= columns / 32) return;
    fix(x[32 * chunk + static_cast<int>(threadIdx.x) % 32], chunk, Fixed{fixed, columns});
}

// The products of the same x with several matrices, one after the other in y; `first` of each is
// its first block. A block multiplies kWarps * kRows rows of one matrix. `residual`, where there is
// one, is added.
KERNEL(128)
project(GIVEN Matrices given, const float* __restrict__ x, const uint8_t* __restrict__ fixed,
        const float* residual, float* y) {
    int which = 0, before = 0;
    while (which + 1 < given.count && static_cast<int>(blockIdx.x) >= given.all[which + 1].first)
        before += given.all[which++].rows;
    const Matrix m = given.all[which];
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int row = ((static_cast<int>(blockIdx.x) - m.first) * kWarps + warp) * kRows;
    if (row >= m.rows) return;
    int rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = min(row + r, m.rows - 1);
    float sums[kRows];
    const Activations in{x, Fixed{const_cast<uint8_t*>(fixed), m.columns}};
    row_products(m, in, rows, sums);
    float mine = sums[0];
#pragma unroll
    for (int r = 1; r < kRows; ++r) mine = lane == r ? sums[r] : mine;
    if (lane < kRows && row + lane < m.rows) {
        const int at = before + row + lane;
        y[at] = residual == nullptr ? mine : residual[at] + mine;
    }
}
