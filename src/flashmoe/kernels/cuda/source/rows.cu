// What many rows pass besides products: embedding, norm, the residual stream's sums, router.
//
// Twins: lookup, rms_norm, add and route of kernels/reference.py. A row's numbers do not depend on
// how many pass together.

#include "matrix.cuh"

constexpr int kMostExperts = 1024;  // of a layer

// y[t] = row ids[t] of the embedding. Blocks of a row (x) by 256 columns (y).
KERNEL(256)
lookup_rows(GIVEN Matrix m, const int* __restrict__ ids, float* __restrict__ y) {
    const int column = static_cast<int>(blockIdx.y * 256 + threadIdx.x);
    if (column >= m.columns) return;
    const int64_t row = ids[blockIdx.x];
    float* into = y + int64_t{blockIdx.x} * m.columns + column;
    if (m.bits == 0) {
        *into = load_float(m.weight, row * m.columns + column, m.type);
        return;
    }
    const int64_t bit = int64_t{column} * m.bits;
    const auto* words =
        reinterpret_cast<const uint32_t*>(m.weight) + row * (int64_t{m.columns} * m.bits / 32);
    const int word = static_cast<int>(bit / 32), shift = static_cast<int>(bit % 32);
    uint32_t code = words[word] >> shift;
    if (shift + m.bits > 32) code |= words[word + 1] << (32 - shift);
    code &= (1U << m.bits) - 1;
    const int64_t at = row * (m.columns / m.group) + column / m.group;
    // Two roundings, not one: what the weight is (quant.py).
    const float scaled = __fmul_rn(static_cast<float>(code), load_float(m.scales, at, m.type));
    *into = __fadd_rn(scaled, load_float(m.biases, at, m.type));
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
    constexpr int kEach = kMostExperts / 32;
    const float* from = logits + int64_t{row} * count;
    float own[kEach];
    float most = -infinity();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int expert = lane + 32 * i;
        own[i] = expert < count ? from[expert] : -infinity();
        most = fmaxf(most, own[i]);
    }
    most = warp_max(most);
    float total = 0.0F;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
        if (lane + 32 * i < count) total += expf(own[i] - most);
    total = warp_sum(total);
    float chosen = 0.0F;  // of lane k, the weight of the k-th
    int number = 0;
    for (int k = 0; k < top_k; ++k) {
        float best = -infinity();
        int at = kMostExperts;
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            if (own[i] > best) best = own[i], at = lane + 32 * i;
        }
        for (int mask = 16; mask; mask >>= 1) {
            const float other = shuffle_xor(best, mask);
            const int its = shuffle_xor(at, mask);
            if (other > best || (other == best && its < at)) best = other, at = its;
        }
        if (at >= count) at = 0, best = not_a_number();  // logits of NaN
        if (lane == k) chosen = expf(best - most) / total, number = at;
#pragma unroll
        for (int i = 0; i < kEach; ++i)
            if (lane + 32 * i == at) own[i] = -infinity();
    }
    const float sum = renormalize ? warp_sum(lane < top_k ? chosen : 0.0F) : 1.0F;
    if (lane < top_k) {
        ids[int64_t{row} * top_k + lane] = number;
        weights[int64_t{row} * top_k + lane] = chosen / sum;
    }
}
