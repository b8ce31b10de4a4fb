// One token's gated delta net between its projections, in one launch: convolution, norms, gates,
// recurrence, gated norm. Twin: gated_delta of kernels/mixers.py.
//
// A block has one value head. Its state is read once, 16 bytes a thread, while the convolution is
// computed, stays in registers as far as they go, and is written once. With decay d, S'k and S'q
// are taken of the old state in one pass: the correction c = beta (v - d S'k), and the new state's
// answer d S'q + (k q) c. Value heads of one key head each compute its convolution; the first of
// them writes its state.

#include "fixed.cuh"

constexpr int kThreads = 512;
constexpr int kHeld = 8;  // rows of the state a thread keeps, four columns of each
constexpr int kMostDim = 256;

// As delta.py writes it.
struct DeltaNet {
    const float* conv;     // (taps, channels)
    const float* decay;    // (value_heads), -exp(A_log)
    const float* dt_bias;  // (value_heads)
    const float* norm;     // (value_dim)
    int key_heads, value_heads, key_dim, value_dim, taps;
    float eps;
};

// log(1 + e^x), however large x.
DEVICE float softplus(float x) { return fmaxf(x, 0.0F) + log1pf(expf(-fabsf(x))); }

// One channel: SiLU of the products with its last inputs; the new state where this block writes it.
DEVICE float convolve(const DeltaNet& net, const float* x, const float* before, float* after,
                      int channel, int channels, bool writes) {
    float sum = 0.0F;
    for (int tap = 0; tap + 1 < net.taps; ++tap) {
        const float old = before[tap * channels + channel];
        sum = fmaf(old, net.conv[tap * channels + channel], sum);
        if (writes && tap > 0) after[(tap - 1) * channels + channel] = old;
    }
    const float now = x[channel];
    if (writes && net.taps > 1) after[(net.taps - 2) * channels + channel] = now;
    return silu(fmaf(now, net.conv[(net.taps - 1) * channels + channel], sum));
}

DEVICE float4 scaled_sum(float a, float4 x, float b, float4 y) {
    return {fmaf(a, x.x, b * y.x), fmaf(a, x.y, b * y.y), fmaf(a, x.z, b * y.z),
            fmaf(a, x.w, b * y.w)};
}
DEVICE void add_scaled(float a, float4 x, float4& sum) {
    sum.x = fmaf(a, x.x, sum.x), sum.y = fmaf(a, x.y, sum.y);
    sum.z = fmaf(a, x.z, sum.z), sum.w = fmaf(a, x.w, sum.w);
}
DEVICE float4 load_once_floats(const float* from) {
    const uint4 v = load_once(from);
    return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
}

// inputs is [qkv (channels) | z (value_heads * value_dim) | b (value_heads) | a (value_heads)];
// states are delta (value_heads, key_dim, value_dim) and conv (taps - 1, channels), the new ones
// elsewhere than the old. y (value_heads * value_dim) also as fixed.
KERNEL(512)
gated_delta(const DeltaNet* __restrict__ layer, const float* __restrict__ inputs,
            const float* __restrict__ delta, float* __restrict__ new_delta,
            const float* __restrict__ conv, float* __restrict__ new_conv, float* __restrict__ y,
            uint8_t* __restrict__ fixed) {
    __shared__ float mixed[3 * kMostDim];                      // q, k, v
    __shared__ float4 recalled[kThreads], answered[kThreads];  // (bands, value_dim / 4)
    __shared__ float4 corrections[kMostDim / 4];
    __shared__ float output[kMostDim];
    const DeltaNet net = *layer;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    const int head = static_cast<int>(blockIdx.x);
    const int key_dim = net.key_dim, value_dim = net.value_dim;
    const int keys = net.key_heads * key_dim, values = net.value_heads * value_dim;
    const int channels = 2 * keys + values;

    // Four columns a thread, rows `band`, band + bands, ...
    const int quads = value_dim / 4, bands = kThreads / quads;
    const int band = thread / quads, column = thread % quads * 4;
    const bool works = band < bands;
    const int64_t place = int64_t{head} * key_dim * value_dim + column;
    float4 held[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const int row = band + i * bands;
        if (works && row < key_dim) held[i] = load_once_floats(delta + place + row * value_dim);
    }

    const int repeat = net.value_heads / net.key_heads, key_head = head / repeat;
    for (int i = thread; i < 2 * key_dim + value_dim; i += kThreads) {
        const int part = i / key_dim;
        const bool value = part >= 2;
        const int channel = value ? 2 * keys + head * value_dim + i - 2 * key_dim
                                  : part * keys + key_head * key_dim + i % key_dim;
        mixed[i] =
            convolve(net, inputs, conv, new_conv, channel, channels, value || head % repeat == 0);
    }
    const float* z = inputs + channels;
    const float b = z[values + head], a = z[values + net.value_heads + head];
    const float decay = expf(net.decay[head] * softplus(a + net.dt_bias[head]));
    block_barrier();

    const float *q = mixed, *k = mixed + key_dim, *v = mixed + 2 * key_dim;
    float qq = 0.0F, kk = 0.0F, qk = 0.0F;
    for (int i = lane; i < key_dim; i += 32) {
        qq = fmaf(q[i], q[i], qq);
        kk = fmaf(k[i], k[i], kk);
        qk = fmaf(q[i], k[i], qk);
    }
    const float q_factor = 1.0F / sqrtf(warp_sum(qq) + 1e-6F) / sqrtf(static_cast<float>(key_dim));
    const float k_factor = 1.0F / sqrtf(warp_sum(kk) + 1e-6F);
    qk = warp_sum(qk) * q_factor * k_factor;

    if (works) {
        float4 with_k{0.0F, 0.0F, 0.0F, 0.0F}, with_q = with_k;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int row = band + i * bands;
            if (row >= key_dim) break;
            add_scaled(k[row], held[i], with_k);
            add_scaled(q[row], held[i], with_q);
        }
        for (int row = band + kHeld * bands; row < key_dim; row += bands) {
            const auto s = *reinterpret_cast<const float4*>(delta + place + row * value_dim);
            add_scaled(k[row], s, with_k);
            add_scaled(q[row], s, with_q);
        }
        recalled[thread] = with_k;
        answered[thread] = with_q;
    }
    block_barrier();
    if (thread < value_dim) {
        float with_k = 0.0F, with_q = 0.0F;
        for (int i = 0; i < bands; ++i) {
            with_k += reinterpret_cast<const float*>(recalled)[i * value_dim + thread];
            with_q += reinterpret_cast<const float*>(answered)[i * value_dim + thread];
        }
        const float c = sigmoid(b) * (v[thread] - decay * k_factor * with_k);
        reinterpret_cast<float*>(corrections)[thread] = c;
        output[thread] = fmaf(decay * q_factor, with_q, qk * c);
    }
    block_barrier();

    if (works) {
        const float4 c = corrections[column / 4];
        float* to = new_delta + place;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int row = band + i * bands;
            if (row >= key_dim) break;
            *reinterpret_cast<float4*>(to + row * value_dim) =
                scaled_sum(decay, held[i], k[row] * k_factor, c);
        }
        for (int row = band + kHeld * bands; row < key_dim; row += bands) {
            const auto s = *reinterpret_cast<const float4*>(delta + place + row * value_dim);
            *reinterpret_cast<float4*>(to + row * value_dim) =
                scaled_sum(decay, s, k[row] * k_factor, c);
        }
    }
    if (thread < value_dim) {  // whole warps
        float squares = 0.0F;
        for (int i = lane; i < value_dim; i += 32) squares = fmaf(output[i], output[i], squares);
        const float mean = warp_sum(squares) / static_cast<float>(value_dim);
        const int at = head * value_dim + thread;
        const float value =
            output[thread] * (1.0F / sqrtf(mean + net.eps)) * net.norm[thread] * silu(z[at]);
        y[at] = value;
        fix(value, at / 32, Fixed{fixed, values});
    }
}
