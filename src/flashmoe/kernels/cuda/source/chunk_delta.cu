// The gated delta net of a chunk's tokens between their projections, in blocks of up to 64.
//
// Blocks end at multiples of 64 of the timeline, and every sum has one fixed order: no result
// depends on where chunks end, if they end at such multiples, nor on what follows. With rows of Q,
// K and V a token each, G the running sums of the decays' logarithms, D_ij = e^(G_i - G_j) for j <=
// i:
//   A_ij = beta_i k_i'k_j D_ij for j < i; X = (I + A)^-1 beta (V - e^G (K S))
//   O = e^G (Q S) + (Q K' D) X; S = e^(G_last) S + (e^(G_last - G) K)' X
// What needs no state (the inverse, Q K' D) is made for all blocks at once; then a thread block
// takes 32 columns of one head's state through the blocks, one after the other. What a block lacks
// of 64 tokens counts as tokens of zeros. Twin: gated_delta of kernels/mixers.py.
// Source: Yang et al., Gated Delta Networks, arXiv 2412.06464, section 3.3.

#include "machine.cuh"

constexpr int kBlock = 64, kPitch = kBlock + 4, kSlice = 32;

// As chunk_delta.py writes it.
struct DeltaChunk {
    const float* conv;     // (taps, channels)
    const float* decay;    // (value_heads), -exp(A_log)
    const float* dt_bias;  // (value_heads)
    const float* norm;     // (value_dim)
    int key_heads, value_heads, key_dim, value_dim, taps;
    float eps;
    int tokens, skipped;  // skipped: how many of the first block's came before

    DEVICE int keys() const { return key_heads * key_dim; }
    DEVICE int channels() const { return 2 * keys() + value_heads * value_dim; }
    DEVICE int first(int block) const { return max(0, block * kBlock - skipped); }
    DEVICE int count(int block) const {
        return min(tokens, (block + 1) * kBlock - skipped) - first(block);
    }
};

// Input `token` of a channel, those before the chunk from the state (taps - 1, channels).
DEVICE float input_of(const DeltaChunk& net, const float* x, const float* before, int token,
                      int channel) {
    if (token >= 0) return x[int64_t{token} * net.channels() + channel];
    return before[(net.taps - 1 + token) * net.channels() + channel];
}

// mixed (tokens, channels) = silu of the convolution; heads of queries and keys normalized, queries
// scaled too. A warp has a head of q, k or v; blocks of eight, by token (y). Those of one more
// token write the new state.
KERNEL(256)
convolve(const DeltaChunk net, const float* __restrict__ x, const float* __restrict__ before,
         float* __restrict__ after, float* __restrict__ mixed) {
    const int head = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32);
    const int token = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x) % 32;
    if (head >= 2 * net.key_heads + net.value_heads) return;
    const bool value = head >= 2 * net.key_heads;
    const int width = value ? net.value_dim : net.key_dim;
    const int first = value ? 2 * net.keys() + (head - 2 * net.key_heads) * width : head * width;
    if (token == net.tokens) {
        for (int tap = 0; tap + 1 < net.taps; ++tap)
            for (int i = lane; i < width; i += 32)
                after[tap * net.channels() + first + i] =
                    input_of(net, x, before, net.tokens - net.taps + 1 + tap, first + i);
        return;
    }
    float* to = mixed + int64_t{token} * net.channels() + first;
    float squares = 0.0F;
    for (int i = lane; i < width; i += 32) {
        float sum = 0.0F;
        for (int tap = 0; tap < net.taps; ++tap)
            sum = fmaf(input_of(net, x, before, token - net.taps + 1 + tap, first + i),
                       net.conv[tap * net.channels() + first + i], sum);
        sum = silu(sum);
        squares = fmaf(sum, sum, squares);
        to[i] = sum;
    }
    if (value) return;
    float factor = 1.0F / sqrtf(warp_sum(squares) + 1e-6F);
    if (head < net.key_heads) factor /= sqrtf(static_cast<float>(net.key_dim));
    for (int i = lane; i < width; i += 32) to[i] *= factor;
}

// log(1 + e^x), however large x.
DEVICE float softplus(float x) { return fmaxf(x, 0.0F) + log1pf(expf(-fabsf(x))); }

// A head's rows of a block, dimension by dimension.
DEVICE void load_columns(const DeltaChunk& net, const float* mixed, int block, int channel,
                         float* to) {
    const int first = net.first(block), count = net.count(block);
    for (int i = static_cast<int>(threadIdx.x); i < kBlock * net.key_dim / 4; i += 256) {
        const int row = i % kBlock, d = i / kBlock * 4;
        float4 v{0.0F, 0.0F, 0.0F, 0.0F};
        if (row < count)
            v = *reinterpret_cast<const float4*>(mixed + int64_t{first + row} * net.channels() +
                                                 channel + d);
        to[d * kPitch + row] = v.x, to[(d + 1) * kPitch + row] = v.y;
        to[(d + 2) * kPitch + row] = v.z, to[(d + 3) * kPitch + row] = v.w;
    }
}

DEVICE void add_products(float4 a, float4 b, float (&sums)[4][4]) {
    const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 16; ++i)
        sums[i / 4][i % 4] = fmaf(as[i / 4], bs[i % 4], sums[i / 4][i % 4]);
}

// For a block (x) of a value head (y): inverse (blocks, value_heads, 64, 64) = (I + A)^-1, weights,
// of the same shape, = Q K' D, and growth (blocks, value_heads, 64) of G and beta.
KERNEL(256)
pair_up(const DeltaChunk net, const float* __restrict__ mixed, const float* __restrict__ b,
        const float* __restrict__ a, float* __restrict__ inverse, float* __restrict__ weights,
        float2* __restrict__ growth) {
    DYNAMIC_SHARED(shared);
    __shared__ float steps[kBlock], sums[kBlock], beta[kBlock];
    __shared__ float system[kBlock][kBlock + 1], solved[kBlock][kBlock + 1];
    auto* q = reinterpret_cast<float*>(shared);
    float* k = q + net.key_dim * kPitch;
    const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
    const int head = static_cast<int>(blockIdx.y), count = net.count(block);
    const int channel = head / (net.value_heads / net.key_heads) * net.key_dim;
    const int64_t place = int64_t{block} * net.value_heads + head;
    load_columns(net, mixed, block, channel, q);
    load_columns(net, mixed, block, net.keys() + channel, k);
    if (thread < kBlock) {
        const int64_t at = int64_t{net.first(block) + thread} * net.value_heads + head;
        const bool there = thread < count;
        steps[thread] = there ? net.decay[head] * softplus(a[at] + net.dt_bias[head]) : 0.0F;
        beta[thread] = there ? sigmoid(b[at]) : 0.0F;
    }
    block_barrier();
    if (thread < kBlock) {
        float sum = 0.0F;
        for (int i = 0; i <= thread; ++i) sum += steps[i];
        sums[thread] = sum;
        growth[place * kBlock + thread] = {sum, beta[thread]};
    }
    const int row = thread / 16 * 4, column = thread % 16 * 4;
    float kk[4][4] = {}, qk[4][4] = {};
    for (int d = 0; d < net.key_dim; ++d) {
        const auto right = *reinterpret_cast<const float4*>(k + d * kPitch + column);
        add_products(*reinterpret_cast<const float4*>(k + d * kPitch + row), right, kk);
        add_products(*reinterpret_cast<const float4*>(q + d * kPitch + row), right, qk);
    }
    block_barrier();
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        const int i = row + n / 4, j = column + n % 4;
        const float decay = j <= i ? expf(sums[i] - sums[j]) : 0.0F;
        system[i][j] = j < i ? beta[i] * kk[n / 4][n % 4] * decay : 0.0F;
        solved[i][j] = i == j ? 1.0F : 0.0F;
        weights[(place * kBlock + i) * kBlock + j] = j <= i ? qk[n / 4][n % 4] * decay : 0.0F;
    }
    block_barrier();
    for (int i = 0; i < kBlock - 1; ++i) {
        for (int n = thread; n < (kBlock - 1 - i) * kBlock; n += 256) {
            const int below = i + 1 + n / kBlock, j = n % kBlock;
            if (j <= i) solved[below][j] = fmaf(-system[below][i], solved[i][j], solved[below][j]);
        }
        block_barrier();
    }
    for (int n = thread; n < kBlock * kBlock; n += 256)
        inverse[place * kBlock * kBlock + n] = solved[n / kBlock][n % kBlock];
}

// A head's rows of a block, row by row.
DEVICE void load_rows(const DeltaChunk& net, const float* mixed, int block, int channel,
                      float* to) {
    const int first = net.first(block), count = net.count(block), quads = net.key_dim / 4;
    for (int i = static_cast<int>(threadIdx.x); i < kBlock * quads; i += 256) {
        const int row = i / quads, d = i % quads * 4;
        float4 v{0.0F, 0.0F, 0.0F, 0.0F};
        if (row < count)
            v = *reinterpret_cast<const float4*>(mixed + int64_t{first + row} * net.channels() +
                                                 channel + d);
        *reinterpret_cast<float4*>(to + 4 * i) = v;
    }
}

// sums[r] = row (row + r) of `left` (64, inner) times a column of `right` (inner, kSlice). Of a
// lower triangle what is above it is not touched: `right` may be NaN there.
template <bool triangle>
DEVICE void times(const float* left, const float* right, int inner, int row, int column,
                  float (&sums)[8]) {
#pragma unroll
    for (int r = 0; r < 8; ++r) sums[r] = 0.0F;
    const int end = triangle ? row + 8 : inner;
    for (int d = 0; d < end; d += 4) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = right[(d + i) * kSlice + column];
#pragma unroll
        for (int r = 0; r < 8; ++r) {
            const auto u = *reinterpret_cast<const float4*>(left + (row + r) * inner + d);
            const float us[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (!triangle || d + i <= row + r) sums[r] = fmaf(us[i], v[i], sums[r]);
        }
    }
}

// S = e^(last) S + K' X, for X (64, kSlice) with its factors.
DEVICE void advance(const float* k, const float* x, int key_dim, float last, float* state) {
    const int column = static_cast<int>(threadIdx.x) % 32;
    for (int d = static_cast<int>(threadIdx.x) / 32 * 4; d < key_dim; d += 32) {
        float sums[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = state[(d + i) * kSlice + column] * last;
#pragma unroll 4
        for (int row = 0; row < kBlock; ++row) {
            const auto u = *reinterpret_cast<const float4*>(k + row * key_dim + d);
            const float v = x[row * kSlice + column];
            sums[0] = fmaf(u.x, v, sums[0]), sums[1] = fmaf(u.y, v, sums[1]);
            sums[2] = fmaf(u.z, v, sums[2]), sums[3] = fmaf(u.w, v, sums[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) state[(d + i) * kSlice + column] = sums[i];
    }
}

// What a thread block has in shared memory.
struct Desk {
    float* state;                // (key_dim, kSlice)
    float* rows;                 // (64, key_dim) of queries, then of keys
    float* triangle;             // (64, 64)
    float* x;                    // (64, kSlice)
    float *grown, *beta, *left;  // (64) e^G, beta, e^(G_last - G)
};

DEVICE void load_triangle(const float* from, int64_t place, float* to) {
    for (int i = static_cast<int>(threadIdx.x); i < kBlock * kBlock; i += 256)
        to[i] = from[place * kBlock * kBlock + i];
}

// One block of a head: its columns of o, and the state after it. `values` and `o` begin at the
// thread's column.
DEVICE void pass_block(const DeltaChunk& net, const Desk& desk, int block, int64_t place,
                       int channel, const float* mixed, const float* values, const float* inverse,
                       const float* weights, float* o) {
    const int column = static_cast<int>(threadIdx.x) % 32;
    const int row = static_cast<int>(threadIdx.x) / 32 * 8;
    const int first = net.first(block), count = net.count(block);
    load_rows(net, mixed, block, channel, desk.rows);
    block_barrier();
    float answered[8], sums[8], within[8];
    times<false>(desk.rows, desk.state, net.key_dim, row, column, answered);
    block_barrier();
    load_rows(net, mixed, block, net.keys() + channel, desk.rows);
    load_triangle(inverse, place, desk.triangle);
    block_barrier();
    times<false>(desk.rows, desk.state, net.key_dim, row, column, sums);
#pragma unroll
    for (int i = row; i < row + 8; ++i) {
        const float v = i < count ? values[int64_t{first + i} * net.channels()] : 0.0F;
        desk.x[i * kSlice + column] = desk.beta[i] * (v - desk.grown[i] * sums[i - row]);
    }
    block_barrier();
    times<true>(desk.triangle, desk.x, kBlock, row, column, sums);
    block_barrier();
#pragma unroll
    for (int r = 0; r < 8; ++r) desk.x[(row + r) * kSlice + column] = sums[r];
    load_triangle(weights, place, desk.triangle);
    block_barrier();
    times<true>(desk.triangle, desk.x, kBlock, row, column, within);
    block_barrier();
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        const float value = fmaf(desk.grown[row + r], answered[r], within[r]);
        if (row + r < count) o[int64_t{first + row + r} * net.value_heads * net.value_dim] = value;
        desk.x[(row + r) * kSlice + column] = sums[r] * desk.left[row + r];
    }
    block_barrier();
    advance(desk.rows, desk.x, net.key_dim, desk.grown[kBlock - 1], desk.state);
    block_barrier();
}

// Columns 32 blockIdx.x and on of value head blockIdx.y, through all blocks: o (tokens,
// value_heads, value_dim); the new state (value_heads, key_dim, value_dim) elsewhere than the old.
KERNEL(256)
recur(const DeltaChunk net, const float* __restrict__ mixed, const float* __restrict__ inverse,
      const float* __restrict__ weights, const float2* __restrict__ growth,
      const float* __restrict__ before, float* __restrict__ after, float* __restrict__ o) {
    DYNAMIC_SHARED(shared);
    __shared__ float grown[kBlock], beta[kBlock], left[kBlock];
    const int thread = static_cast<int>(threadIdx.x), column = thread % 32;
    const int head = static_cast<int>(blockIdx.y);
    const int channel = head / (net.value_heads / net.key_heads) * net.key_dim;
    auto* state = reinterpret_cast<float*>(shared);
    float* rows = state + net.key_dim * kSlice;
    float* triangle = rows + kBlock * net.key_dim;
    const Desk desk{state, rows, triangle, triangle + kBlock * kBlock, grown, beta, left};
    const int mine = static_cast<int>(blockIdx.x) * kSlice + column;
    const int64_t held = int64_t{head} * net.key_dim * net.value_dim + mine;
    for (int d = thread / 32; d < net.key_dim; d += 8)
        state[d * kSlice + column] = before[held + int64_t{d} * net.value_dim];
    const int own = head * net.value_dim + mine;
    const int blocks = (net.skipped + net.tokens + kBlock - 1) / kBlock;
    for (int block = 0; block < blocks; ++block) {
        const int64_t place = int64_t{block} * net.value_heads + head;
        if (thread < kBlock) {
            const float2 g = growth[place * kBlock + thread];
            const float last = growth[place * kBlock + kBlock - 1].x;
            grown[thread] = expf(g.x), beta[thread] = g.y, left[thread] = expf(last - g.x);
        }
        pass_block(net, desk, block, place, channel, mixed, mixed + 2 * net.keys() + own, inverse,
                   weights, o + own);
    }
    for (int d = thread / 32; d < net.key_dim; d += 8)
        after[held + int64_t{d} * net.value_dim] = state[d * kSlice + column];
}

// y = rms_norm(o) * silu(z) of each head. A warp has one; blocks of eight, by token (y).
KERNEL(256)
gate(const DeltaChunk net, const float* __restrict__ z, float* __restrict__ o) {
    const int head = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (head >= net.value_heads) return;
    const int64_t place = (int64_t{blockIdx.y} * net.value_heads + head) * net.value_dim;
    float squares = 0.0F;
    for (int i = lane; i < net.value_dim; i += 32)
        squares = fmaf(o[place + i], o[place + i], squares);
    const float mean = warp_sum(squares) / static_cast<float>(net.value_dim);
    const float factor = 1.0F / sqrtf(mean + net.eps);
    for (int i = lane; i < net.value_dim; i += 32)
        o[place + i] = o[place + i] * factor * net.norm[i] * silu(z[place + i]);
}
