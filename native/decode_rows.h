// The vector code of decode.h, included once by the file of each instruction set.
//
// That file defines FLASHMOE_LANES (floats a vector) and FLASHMOE_TABLE (the name of its table).
// Everything else has internal linkage, and nothing of the standard library is instantiated: see
// RowKernels in dispatch.h.

#include <cstddef>
#include <cstdint>
#include <utility>

#include "chunk_attention.h"
#include "decode.h"
#include "vectors.h"

namespace flashmoe {
namespace {

constexpr std::size_t kTogether = 4;  // vectors whose sums are in registers at once

// A whole vector past the caches, to memory aligned to it; fence() after the last. It saves reading
// what is overwritten. Clang's __builtin_nontemporal_store does the same, GCC has no such thing.
inline __attribute__((always_inline)) void stream(float* to, Vec v) {
#if FLASHMOE_LANES == 16
    _mm512_stream_ps(to, (__m512)v);
#elif FLASHMOE_LANES == 8
    _mm256_stream_ps(to, (__m256)v);
#else
    store(to, v);
#endif
}

inline void fence() {
#if FLASHMOE_LANES > 4
    _mm_sfence();
#endif
}

void rms_norm(const float* x, std::size_t rows, std::size_t width, const float* weight, float eps,
              float* y) {
    for (std::size_t t = 0; t < rows; ++t, x += width, y += width) {
        const Vec inverse = splat(inverse_rms(x, width, eps));
        for (std::size_t i = 0; i < width; i += kLanes)
            store(y + i, load(x + i, width - i) * inverse * load(weight + i, width - i), width - i);
    }
}

void swiglu(float* gate, const float* up, std::size_t count) {
    for (std::size_t i = 0; i < count; i += kLanes) {
        const Vec g = load(gate + i, count - i);
        store(gate + i, g * sigmoid(g) * load(up + i, count - i), count - i);
    }
}

void combine(const float* x, const float* weights, std::size_t places, std::size_t width,
             float* y) {
    for (std::size_t i = 0; i < width; i += kLanes) {
        Vec total{};
        for (std::size_t k = 0; k < places; ++k)
            total += load(x + k * width + i, width - i) * splat(weights[k]);
        store(y + i, total, width - i);
    }
}

void scale(const float* gate, std::size_t rows, std::size_t width, float* y) {
    for (std::size_t t = 0; t < rows; ++t) multiply(y + t * width, width, sigmoid(gate[t]));
}

// Whether a stands before b, at a lower index, in descending order; NaN stands last.
constexpr bool before(float a, float b) { return a >= b || b != b; }

void route(const float* logits, std::size_t rows, std::size_t count, std::size_t top,
           bool renormalize, std::int64_t* ids, float* weights) {
    for (std::size_t t = 0; t < rows; ++t, logits += count, ids += top, weights += top) {
        std::size_t found = 0;
        for (std::size_t i = 0; i < count; ++i) {
            std::size_t place = found;
            while (place > 0 && !before(logits[ids[place - 1]], logits[i])) --place;
            if (place == top) continue;
            if (found < top) ++found;
            for (std::size_t j = found - 1; j > place; --j) ids[j] = ids[j - 1];
            ids[place] = static_cast<std::int64_t>(i);
        }
        const float most = logits[ids[0]];
        Vec total{};
        for (std::size_t i = 0; i < count; i += kLanes) {
            Vec e = exp_of(load(logits + i, count - i) - splat(most));
            if (count - i < kLanes) e = load(reinterpret_cast<const float*>(&e), count - i);
            total += e;
        }
        float all = sum(total);
        for (std::size_t k = 0; k < top; ++k) weights[k] = __builtin_expf(logits[ids[k]] - most);
        if (renormalize && all == all) {
            all = 0;
            for (std::size_t k = 0; k < top; ++k) all += weights[k];
        }
        for (std::size_t k = 0; k < top; ++k) weights[k] /= all;
    }
}

// silu of the convolution of channels [first, first + count), and their new state.
void convolve(const DeltaStep& s, std::size_t first, std::size_t count, float* into) {
    const std::size_t channels = s.channels(), past = s.taps - 1;
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t c = first + i, left = count - i;
        Vec total{};
        for (std::size_t tap = 0; tap < past; ++tap) {
            const Vec x = load(s.conv_in + tap * channels + c, left);
            total += x * load(s.conv + tap * channels + c, left);
            if (tap > 0) store(s.conv_out + (tap - 1) * channels + c, x, left);
        }
        const Vec x = load(s.qkv + c, left);
        total += x * load(s.conv + past * channels + c, left);
        if (past > 0) store(s.conv_out + (past - 1) * channels + c, x, left);
        store(into + i, total * sigmoid(total), left);
    }
}

struct Gates {
    float decay, beta;
};

// kCount vectors of columns of one head's state; `left` floats of the last remain. With `past`
// the new state goes past the caches.
template <std::size_t kCount, bool past>
void delta_columns(const DeltaStep& s, const float* q, const float* k, const float* v, Gates gates,
                   const float* in, float* out, float* o, std::size_t left) {
    const std::size_t width = s.value_dim;
    Vec recalled[kCount] = {}, correction[kCount], outcome[kCount] = {};
    const auto row = [&](const float* at, std::size_t j) {
        return kCount == 1 ? load(at, left) : load(at + j * kLanes);
    };
    for (std::size_t i = 0; i < s.key_dim; ++i)
        for (std::size_t j = 0; j < kCount; ++j)
            recalled[j] += row(in + i * width, j) * splat(k[i]);
    for (std::size_t j = 0; j < kCount; ++j)
        correction[j] = (row(v, j) - recalled[j] * splat(gates.decay)) * splat(gates.beta);
    for (std::size_t i = 0; i < s.key_dim; ++i)
        for (std::size_t j = 0; j < kCount; ++j) {
            const Vec state =
                row(in + i * width, j) * splat(gates.decay) + correction[j] * splat(k[i]);
            if constexpr (past)
                stream(out + i * width + j * kLanes, state);
            else
                store(out + i * width + j * kLanes, state, kCount == 1 ? left : kLanes);
            outcome[j] += state * splat(q[i]);
        }
    for (std::size_t j = 0; j < kCount; ++j)
        store(o + j * kLanes, outcome[j], kCount == 1 ? left : kLanes);
}

// Whether the new state is written past the caches: one that is read again only after megabytes of
// other layers, in rows of whole lines.
bool goes_past(const DeltaStep& s) {
    constexpr std::size_t kLarge = std::size_t{1} << 20, kLine = 64;
    return s.value_heads * s.key_dim * s.value_dim * 4 >= kLarge && s.value_dim * 4 % kLine == 0 &&
           reinterpret_cast<std::uintptr_t>(s.delta_out) % kLine == 0;
}

void delta_head(const DeltaStep& s, std::size_t h, const float* q, const float* k, const float* v) {
    const std::size_t width = s.value_dim, whole = kTogether * kLanes;
    const float step = s.a[h] + s.dt_bias[h];
    const float softplus =
        larger(step, 0.0F) + __builtin_log1pf(__builtin_expf(-__builtin_fabsf(step)));
    const float log_decay = s.decay[h] * (step != step ? step : softplus);
    const Gates gates{__builtin_expf(log_decay), sigmoid(s.b[h])};
    const float* in = s.delta_in + h * s.key_dim * width;
    float *out = s.delta_out + h * s.key_dim * width, *o = s.y + h * width;
    std::size_t i = 0;
    const bool past = goes_past(s);
    for (; i + whole <= width; i += whole) {
        const auto columns =
            past ? delta_columns<kTogether, true> : delta_columns<kTogether, false>;
        columns(s, q, k, v + i, gates, in + i, out + i, o + i, whole);
    }
    for (; i < width; i += kLanes)
        delta_columns<1, false>(s, q, k, v + i, gates, in + i, out + i, o + i, width - i);
    const Vec inverse = splat(inverse_rms(o, width, s.eps));
    for (i = 0; i < width; i += kLanes) {
        const std::size_t left = width - i;
        const Vec z = load(s.z + h * width + i, left);
        store(o + i, load(o + i, left) * inverse * load(s.norm + i, left) * (z * sigmoid(z)), left);
    }
}

void delta(const DeltaStep& s, std::size_t begin, std::size_t end, float* scratch) {
    float *q = scratch, *k = q + s.key_dim, *v = k + s.key_dim;
    const std::size_t keys = s.key_heads * s.key_dim, repeat = s.value_heads / s.key_heads;
    const float root = 1.0F / __builtin_sqrtf(static_cast<float>(s.key_dim));
    for (std::size_t g = begin; g < end; ++g) {
        convolve(s, g * s.key_dim, s.key_dim, q);
        convolve(s, keys + g * s.key_dim, s.key_dim, k);
        multiply(q, s.key_dim, root / __builtin_sqrtf(sum_of_squares(q, s.key_dim) + 1e-6F));
        multiply(k, s.key_dim, 1.0F / __builtin_sqrtf(sum_of_squares(k, s.key_dim) + 1e-6F));
        for (std::size_t h = g * repeat; h < (g + 1) * repeat; ++h) {
            convolve(s, 2 * keys + h * s.value_dim, s.value_dim, v);
            delta_head(s, h, q, k, v);
        }
    }
    fence();
}

#include "decode_attention.h"

}  // namespace

const DecodeKernels FLASHMOE_TABLE{rms_norm, swiglu, combine, scale,        route,       delta,
                                   append,   attend, merge,   append_chunk, attend_chunk};

}  // namespace flashmoe
