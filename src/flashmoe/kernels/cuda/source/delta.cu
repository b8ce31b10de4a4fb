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
constexpr int kMostDim = 256, kMostTaps = 4;

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
    float inputs[kMostTaps], weights[kMostTaps];  // all loads come before the first store
#pragma unroll
    for (int tap = 0; tap < kMostTaps; ++tap) {
        inputs[tap] = weights[tap] = 0.0F;
        if (tap >= net.taps) continue;
        weights[tap] = net.conv[tap * channels + channel];
        inputs[tap] = tap + 1 < net.taps ? before[tap * channels + channel] : x[channel];
    }
    float sum = 0.0F;
#pragma unroll
    for (int tap = 0; tap < kMostTaps; ++tap) {
        if (tap >= net.taps) break;
        sum = fmaf(inputs[tap], weights[tap], sum);
        if (writes && tap > 0) after[(tap - 1) * channels + channel] = inputs[tap];
    }
    return silu(sum);
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

// A thread's share of a head's state: four columns of rows band, band + bands, ...
struct Share {
    const float* from;
    int key_dim, value_dim, bands, band, column;
    bool works;  // threads that are left over do not
    float4 held[kHeld];

    DEVICE Share(const DeltaNet& net, const float* state) : from(state) {
        key_dim = net.key_dim, value_dim = net.value_dim;
        const int thread = static_cast<int>(threadIdx.x), quads = value_dim / 4;
        bands = kThreads / quads, band = thread / quads, column = thread % quads * 4;
        works = band < bands;
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
            if (works && band + i * bands < key_dim)
                held[i] = load_once_floats(at(band + i * bands));
    }

    DEVICE const float* at(int row) const { return from + row * value_dim + column; }

    // S'x of its rows, for two x.
    DEVICE void recall(const float* q, const float* k, float4& answered, float4& recalled) const {
        float4 with_q{0.0F, 0.0F, 0.0F, 0.0F}, with_k = with_q;  // in registers until the end
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int row = band + i * bands;
            if (row >= key_dim) break;
            add_scaled(q[row], held[i], with_q);
            add_scaled(k[row], held[i], with_k);
        }
        for (int row = band + kHeld * bands; row < key_dim; row += bands) {
            const float4 s = *reinterpret_cast<const float4*>(at(row));
            add_scaled(q[row], s, with_q);
            add_scaled(k[row], s, with_k);
        }
        answered = with_q, recalled = with_k;
    }

    // decay * S + factor * k c'.
    DEVICE void write(float* state, float decay, const float* k, float factor, float4 c) const {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int row = band + i * bands;
            if (row >= key_dim) break;
            auto* to = reinterpret_cast<float4*>(state + row * value_dim + column);
            *to = scaled_sum(decay, held[i], k[row] * factor, c);
        }
        for (int row = band + kHeld * bands; row < key_dim; row += bands) {
            const float4 s = *reinterpret_cast<const float4*>(at(row));
            auto* to = reinterpret_cast<float4*>(state + row * value_dim + column);
            *to = scaled_sum(decay, s, k[row] * factor, c);
        }
    }
};

// Of a key head, for every warp: what its query and key are multiplied with, and their product
// then.
struct Scales {
    float query, key, product;

    DEVICE Scales(const float* q, const float* k, int width) {
        float qq = 0.0F, kk = 0.0F, qk = 0.0F;
        for (int i = static_cast<int>(threadIdx.x) % 32; i < width; i += 32) {
            qq = fmaf(q[i], q[i], qq);
            kk = fmaf(k[i], k[i], kk);
            qk = fmaf(q[i], k[i], qk);
        }
        query = 1.0F / sqrtf(warp_sum(qq) + 1e-6F) / sqrtf(static_cast<float>(width));
        key = 1.0F / sqrtf(warp_sum(kk) + 1e-6F);
        product = warp_sum(qk) * query * key;
    }
};

// The head's q, k and v, convolved, to `mixed`.
DEVICE void mix(const DeltaNet& net, int head, const float* inputs, const float* conv,
                float* new_conv, float* mixed) {
    const int keys = net.key_heads * net.key_dim, values = net.value_heads * net.value_dim;
    const int repeat = net.value_heads / net.key_heads, key_head = head / repeat;
    const int before = 2 * net.key_dim;
    for (int i = static_cast<int>(threadIdx.x); i < before + net.value_dim; i += kThreads) {
        const bool value = i >= before;
        const int channel = value
                                ? 2 * keys + head * net.value_dim + i - before
                                : i / net.key_dim * keys + key_head * net.key_dim + i % net.key_dim;
        mixed[i] = convolve(net, inputs, conv, new_conv, channel, 2 * keys + values,
                            value || head % repeat == 0);
    }
}

// y = norm(output) * silu(z) of the head, by the first value_dim threads, as floats and fixed.
DEVICE void gate(const DeltaNet& net, int head, const float* output, const float* z, float* y,
                 uint8_t* fixed) {
    const int thread = static_cast<int>(threadIdx.x), width = net.value_dim;
    if (thread >= width) return;  // whole warps
    float squares = 0.0F;
    for (int i = thread % 32; i < width; i += 32) squares = fmaf(output[i], output[i], squares);
    const float mean = warp_sum(squares) / static_cast<float>(width);
    const int at = head * width + thread;
    const float factor = 1.0F / sqrtf(mean + net.eps);
    const float value = output[thread] * factor * net.norm[thread] * silu(z[at]);
    y[at] = value;
    fix(value, at / 32, Fixed{fixed, net.value_heads * width});
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
    const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x);
    const int64_t place = int64_t{head} * net.key_dim * net.value_dim;
    const int values = net.value_heads * net.value_dim;
    const float* z = inputs + 2 * net.key_heads * net.key_dim + values;
    const float b = z[values + head], a = z[values + net.value_heads + head];
    const float log_decay = net.decay[head], bias = net.dt_bias[head];
    Share share(net, delta + place);
    mix(net, head, inputs, conv, new_conv, mixed);
    const float decay = expf(log_decay * softplus(a + bias));
    block_barrier();

    const float *q = mixed, *k = q + net.key_dim, *v = k + net.key_dim;
    const Scales scales(q, k, net.key_dim);
    if (share.works) share.recall(q, k, answered[thread], recalled[thread]);
    block_barrier();
    if (thread < net.value_dim) {
        float with_k = 0.0F, with_q = 0.0F;
        for (int i = thread; i < share.bands * net.value_dim; i += net.value_dim) {
            with_k += reinterpret_cast<const float*>(recalled)[i];
            with_q += reinterpret_cast<const float*>(answered)[i];
        }
        const float c = sigmoid(b) * (v[thread] - decay * scales.key * with_k);
        reinterpret_cast<float*>(corrections)[thread] = c;
        output[thread] = fmaf(decay * scales.query, with_q, scales.product * c);
    }
    block_barrier();
    if (share.works)
        share.write(new_delta + place, decay, k, scales.key, corrections[share.column / 4]);
    gate(net, head, output, z, y, fixed);
}
