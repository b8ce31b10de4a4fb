// The end of one token's attention; its beginning is attention.cuh, in one source a form of keys
// and values, so that only the one in use need be compiled.

#include "attention.cuh"

// What the blocks of attend_* found, as one; gated where the layer is. y (heads * width) also as
// fixed. Grid (width / 32, heads): a block makes 32 values.
KERNEL(256)
merge(const Attention* __restrict__ layer, int width, const float* __restrict__ inputs,
      const int* __restrict__ position, int splits, const float* __restrict__ out,
      const float2* __restrict__ ends, float* __restrict__ y, uint8_t* __restrict__ fixed) {
    __shared__ float room[kThreads];
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int head = static_cast<int>(blockIdx.y);
    const int dimension = static_cast<int>(blockIdx.x) * 32 + lane;
    const int count = min(*position / kTile + 1, splits);
    ends += head * splits;
    out += int64_t{head} * splits * width;
    float most = -infinity();
    for (int s = lane; s < count; s += 32) most = fmaxf(most, ends[s].x);
    most = warp_max(most);
    float sum = 0.0F;
    for (int s = warp; s < count; s += kWarps)
        sum = fmaf(expf(ends[s].x - most), out[int64_t{s} * width + dimension], sum);
    room[thread] = sum;
    block_barrier();
    if (warp != 0) return;
    float total = 0.0F;
    for (int s = lane; s < count; s += 32) total = fmaf(expf(ends[s].x - most), ends[s].y, total);
    total = warp_sum(total);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum += room[32 * w + lane];
    float value = sum / total;
    if (layer->gated) value *= sigmoid(inputs[(2 * head + 1) * width + dimension]);
    const int at = head * width + dimension;
    y[at] = value;
    fix(value, at / 32, Fixed{fixed, layer->heads * width});
}
