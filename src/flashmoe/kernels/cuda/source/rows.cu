// What many rows pass besides products: embedding, norm, the residual stream's sums, router.
//
// Twins: lookup, rms_norm, add and route of kernels/reference.py. A row's numbers do not depend on
// how many pass together.

#include "matrix.cuh"
#include "router.cuh"

// y[t] = row ids[t] of the embedding. Blocks of a row (x) by 256 columns (y).
KERNEL(256)
lookup_rows(GIVEN Matrix m, const int* __restrict__ ids, float* __restrict__ y) {
    const int column = static_cast<int>(blockIdx.y * 256 + threadIdx.x);
    if (column >= m.columns) return;
    const int64_t row = ids[blockIdx.x];
    float* into = y + int64_t{blockIdx.x} * m.columns + column;
    *into = weight_at(m, row, column);
}

// y = x / sqrt(mean(x^2) + eps) * weight of each row, a block a row.
KERNEL(256)
norm_rows(const float* __restrict__ x, const float* __restrict__ weight, float eps, int columns,
          float* __restrict__ y) {
    __shared__ float room[32];
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const float* from = x + int64_t{blockIdx.x} * columns;
    float* into = y + int64_t{blockIdx.x} * columns;
    float squares = 0.0F;
    for (int i = thread; i < columns; i += threads) squares = fmaf(from[i], from[i], squares);
    const float mean = block_sum(squares, room) / static_cast<float>(columns);
    const float factor = 1.0F / sqrtf(mean + eps);
    for (int i = thread; i < columns; i += threads) into[i] = from[i] * factor * weight[i];
}

// y += x, or sigmoid(logits[t]) * x. Blocks of a row (x) by 1024 columns (y), four a thread.
KERNEL(256)
add_rows(float* y, const float* __restrict__ x, const float* __restrict__ logits, int columns) {
    const int column = static_cast<int>(blockIdx.y * 1024 + threadIdx.x * 4);
    const float open = logits == nullptr ? 1.0F : sigmoid(logits[blockIdx.x]);
    const int64_t at = int64_t{blockIdx.x} * columns + column;
    for (int i = 0; i < 4 && column + i < columns; ++i)
        y[at + i] = fmaf(open, x[at + i], y[at + i]);
}

// Softmax over the router's logits (rows, count); the top_k ids, best first, ties to the lower, and
// their weights. A warp a row, four a block.
KERNEL(128)
route_rows(const float* __restrict__ logits, int rows, int count, int top_k, int renormalize,
           int* __restrict__ ids, float* __restrict__ weights) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = static_cast<int>(blockIdx.x * 4 + threadIdx.x / 32);
    if (row >= rows) return;
    float chosen = 0.0F;  // of lane k, the weight of the k-th
    int number = 0;
    choose(logits + int64_t{row} * count, count, top_k, renormalize, number, chosen);
    if (lane < top_k) {
        ids[int64_t{row} * top_k + lane] = number;
        weights[int64_t{row} * top_k + lane] = chosen;
    }
}
