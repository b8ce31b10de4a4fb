// Attention of one token: the part of decode_rows.h that includes it, inside its namespaces.
//
// Owns the forms in which keys and values are held. A block's scores are whole before their
// softmax, so each element is summed once, in order; blocks are merged by their maxima.

// Float16 to floats, exactly.
inline __attribute__((always_inline)) Vec from_f16(Halves halves) {
#if FLASHMOE_LANES == 16
    return (Vec)_mm512_maskz_cvtph_ps(0xffff, (__m256i)halves);
#elif FLASHMOE_LANES == 8
    return (Vec)_mm256_cvtph_ps((__m128i)halves);
#else
    // The fields moved to those of a float, whose exponent is then 112 too small: a product mends
    // that, of subnormals too, but not for infinity and NaN.
    const Words wide = __builtin_convertvector(halves, Words);
    const Words fields = (wide & 0x7fff) << 13, sign = (wide & 0x8000) << 16;
    const Words finite = cast<Words>(cast<Vec>(fields) * splat(0x1p112F));
    return cast<Vec>(((wide & 0x7c00) == 0x7c00 ? fields | 0x7f800000 : finite) | sign);
#endif
}

// One key or value row of a kind, as floats.
template <KvKind kind>
struct Held {
    static constexpr std::size_t kBytes = kind == KvKind::f32 ? 4 : kind == KvKind::int8 ? 1 : 2;

    static inline __attribute__((always_inline)) Vec load_at(const unsigned char* row,
                                                             std::size_t i, std::size_t count) {
        const unsigned char* from = row + i * kBytes;
        if constexpr (kind == KvKind::f32) {
            return take<Vec>(from, count);
        } else if constexpr (kind == KvKind::bf16) {
            const Words wide = __builtin_convertvector(take<Halves>(from, count), Words);
            return cast<Vec>(wide << 16);
        } else if constexpr (kind == KvKind::f16) {
            return from_f16(take<Halves>(from, count));
        } else {
            // In two steps: GCC widens a byte to a word at once one lane at a time.
            const Shorts wide = __builtin_convertvector(take<Codes>(from, count), Shorts);
            return __builtin_convertvector(__builtin_convertvector(wide, Ints), Vec);
        }
    }
};

// To bfloat16, ties to even; NaN stays NaN.
std::uint16_t to_bf16(float x) {
    const std::uint32_t bits = cast<std::uint32_t>(x);
    if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// To float16, ties to even; what is too large becomes infinity, NaN stays NaN.
std::uint16_t to_f16(float x) {
    const std::uint32_t bits = cast<std::uint32_t>(x);
    const std::uint32_t magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    // Below 2^-14 the unit is that of a half's subnormals, 2^-24, which is that of 0.5 as a float.
    const std::uint32_t small = cast<std::uint32_t>(cast<float>(magnitude) + 0.5F) - 0x3f000000;
    const std::uint32_t large = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
    std::uint32_t half = magnitude < 0x38800000 ? small : large;
    half = magnitude >= 0x47800000 ? 0x7c00 : half;
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return static_cast<std::uint16_t>(sign | half);
}

template <std::uint16_t (*round)(float)>
void hold_halves(unsigned char* to, const float* x, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint16_t half = round(x[i]);
        __builtin_memcpy(to + i * 2, &half, 2);
    }
}

// One row into its place. int8: scale = max|x| / 127; what is not finite makes it NaN.
void hold(const KeyValues& kv, void* rows, float* scales, std::size_t at, const float* x) {
    unsigned char* to = static_cast<unsigned char*>(rows);
    if (kv.kind == KvKind::f32) {
        __builtin_memcpy(to + at * kv.dim * 4, x, kv.dim * 4);
    } else if (kv.kind != KvKind::int8) {
        to += at * kv.dim * 2;
        kv.kind == KvKind::f16 ? hold_halves<to_f16>(to, x, kv.dim)
                               : hold_halves<to_bf16>(to, x, kv.dim);
    } else {
        float most = 0;
        bool finite = true;
        for (std::size_t i = 0; i < kv.dim; ++i) {
            const float magnitude = __builtin_fabsf(x[i]);
            finite = finite && magnitude <= __FLT_MAX__;
            most = larger(magnitude, most);
        }
        const float unit = finite ? most / 127.0F : __builtin_nanf("");
        scales[at] = unit;
        for (std::size_t i = 0; i < kv.dim; ++i) {
            const float code = unit > 0 ? (x[i] / unit + 0x1.8p23F) - 0x1.8p23F : 0.0F;
            const float top = code > 127.0F ? 127.0F : code < -127.0F ? -127.0F : code;
            const std::int8_t byte = static_cast<std::int8_t>(top);
            __builtin_memcpy(to + at * kv.dim + i, &byte, 1);
        }
    }
}

// into = rotary(norm(x)) * factor for one head.
void turn(const AttendStep& s, const float* x, const float* norm, float factor, float* into) {
    const std::size_t dim = s.kv.dim, half = s.rope_dims / 2;
    if (norm != nullptr)
        rms_norm(x, 1, dim, norm, s.eps, into);
    else
        __builtin_memcpy(into, x, dim * 4);
    for (std::size_t i = 0; i < half; ++i) {
        const float first = into[i], second = into[i + half];
        into[i] = first * s.cos[i] - second * s.sin[i];
        into[i + half] = second * s.cos[i] + first * s.sin[i];
    }
    multiply(into, dim, factor);
}

// Key and value of the token into their places; `scratch` has room for a head.
void hold_token(const AttendStep& s, float* scratch) {
    const std::size_t dim = s.kv.dim;
    for (std::size_t g = 0; g < s.kv.heads; ++g) {
        const std::size_t at = g * s.kv.context + s.position;
        turn(s, s.k + g * dim, s.k_norm, 1.0F, scratch);
        hold(s.kv, s.kv.keys, s.kv.key_scales, at, scratch);
        hold(s.kv, s.kv.values, s.kv.value_scales, at, s.v + g * dim);
    }
}

void append(const AttendStep& s, float* queries) {
    const std::size_t dim = s.kv.dim, padded = s.padded();
    hold_token(s, queries);
    const float root = 1.0F / __builtin_sqrtf(static_cast<float>(dim));
    for (std::size_t h = 0; h < s.heads; ++h) {
        float* into = queries + h * padded;
        for (std::size_t i = dim; i < padded; ++i) into[i] = 0;
        turn(s, s.q + h * dim * (s.gated ? 2 : 1), s.q_norm, root, into);
    }
}

// scores[h * kContextBlock + t] of kHeads heads with `count` keys.
template <KvKind kind, std::size_t kHeads>
void score(const AttendStep& s, const float* queries, const unsigned char* keys,
           const float* scales, std::size_t count, float* scores) {
    const std::size_t dim = s.kv.dim, padded = s.padded();
    for (std::size_t t = 0; t < count; ++t, keys += dim * Held<kind>::kBytes) {
        Vec total[kHeads] = {};
        for (std::size_t i = 0; i < dim; i += kLanes) {
            const Vec key = Held<kind>::load_at(keys, i, dim - i);
            for (std::size_t h = 0; h < kHeads; ++h)
                total[h] += key * load(queries + h * padded + i);
        }
        for (std::size_t h = 0; h < kHeads; ++h)
            scores[h * kContextBlock + t] = sum(total[h]) * (scales == nullptr ? 1.0F : scales[t]);
    }
}

// Scores to exp(score - max); returns the maximum and, in `total`, their sum.
float soften(float* scores, std::size_t count, float* total) {
    float most = -__builtin_inff();
    for (std::size_t t = 0; t < count; ++t) most = larger(scores[t], most);
    Vec all{};
    for (std::size_t t = 0; t < count; t += kLanes) {
        Vec e = exp_of(load(scores + t, count - t) - splat(most));
        store(scores + t, e, count - t);
        all += load(scores + t, count - t);
    }
    *total = sum(all);
    return most;
}

// into (kHeads, padded) = scores times values, kCount vectors from float `i` of each row on.
template <KvKind kind, std::size_t kHeads, std::size_t kCount>
void weigh_columns(const AttendStep& s, const float* scores, const unsigned char* values,
                   std::size_t count, std::size_t i, float* into) {
    const std::size_t dim = s.kv.dim;
    Vec total[kHeads][kCount] = {};
    for (std::size_t t = 0; t < count; ++t, values += dim * Held<kind>::kBytes)
        for (std::size_t j = 0; j < kCount; ++j) {
            const std::size_t at = i + j * kLanes;
            const Vec value = Held<kind>::load_at(values, at, kCount == 1 ? dim - at : kLanes);
            for (std::size_t h = 0; h < kHeads; ++h)
                total[h][j] += value * splat(scores[h * kContextBlock + t]);
        }
    for (std::size_t h = 0; h < kHeads; ++h)
        for (std::size_t j = 0; j < kCount; ++j)
            store(into + h * (s.padded() + 2) + i + j * kLanes, total[h][j]);
}

template <KvKind kind, std::size_t kHeads>
void attend_heads(const AttendStep& s, const float* queries, std::size_t first, std::size_t count,
                  float* scores, float* into) {
    const std::size_t row = s.kv.dim * Held<kind>::kBytes, padded = s.padded();
    const auto at = [&](const void* rows) {
        return static_cast<const unsigned char*>(rows) + first * row;
    };
    const bool scaled = kind == KvKind::int8;
    score<kind, kHeads>(s, queries, at(s.kv.keys), scaled ? s.kv.key_scales + first : nullptr,
                        count, scores);
    for (std::size_t h = 0; h < kHeads; ++h) {
        float* own = into + h * (padded + 2) + padded;
        own[0] = soften(scores + h * kContextBlock, count, own + 1);
        if (scaled)
            for (std::size_t t = 0; t < count; ++t)
                scores[h * kContextBlock + t] *= s.kv.value_scales[first + t];
    }
    constexpr std::size_t kWhole = 2 * kLanes;
    std::size_t i = 0;
    for (; i + kWhole <= s.kv.dim; i += kWhole)
        weigh_columns<kind, kHeads, 2>(s, scores, at(s.kv.values), count, i, into);
    for (; i < s.kv.dim; i += kLanes)
        weigh_columns<kind, kHeads, 1>(s, scores, at(s.kv.values), count, i, into);
}

template <KvKind kind>
void attend_units(const AttendStep& s, const float* queries, std::size_t begin, std::size_t end,
                  float* partials, float* scores) {
    const std::size_t blocks = s.blocks(), group = s.group(), padded = s.padded();
    for (std::size_t unit = begin; unit < end; ++unit) {
        const std::size_t g = unit / blocks, skipped = unit % blocks * kContextBlock;
        const std::size_t count = least(kContextBlock, s.position + 1 - skipped);
        const std::size_t first = g * s.kv.context + skipped;
        const float* own = queries + g * group * padded;
        float* into = partials + unit * s.partial();
        std::size_t h = 0;
        for (; h + 8 <= group; h += 8)
            attend_heads<kind, 8>(s, own + h * padded, first, count, scores,
                                  into + h * (padded + 2));
        for (; h + 4 <= group; h += 4)
            attend_heads<kind, 4>(s, own + h * padded, first, count, scores,
                                  into + h * (padded + 2));
        for (; h < group; ++h)
            attend_heads<kind, 1>(s, own + h * padded, first, count, scores,
                                  into + h * (padded + 2));
    }
}

void attend(const AttendStep& s, const float* queries, std::size_t begin, std::size_t end,
            float* partials, float* scores) {
    switch (s.kv.kind) {
        case KvKind::f16:
            return attend_units<KvKind::f16>(s, queries, begin, end, partials, scores);
        case KvKind::bf16:
            return attend_units<KvKind::bf16>(s, queries, begin, end, partials, scores);
        case KvKind::int8:
            return attend_units<KvKind::int8>(s, queries, begin, end, partials, scores);
        default: return attend_units<KvKind::f32>(s, queries, begin, end, partials, scores);
    }
}

void merge(const AttendStep& s, const float* partials, std::size_t begin, std::size_t end) {
    const std::size_t blocks = s.blocks(), dim = s.kv.dim, padded = s.padded();
    for (std::size_t h = begin; h < end; ++h) {
        const std::size_t g = h / s.group();
        const float* first = partials + g * blocks * s.partial() + h % s.group() * (padded + 2);
        float most = -__builtin_inff(), total = 0;
        for (std::size_t b = 0; b < blocks; ++b)
            most = larger(first[b * s.partial() + padded], most);
        float* y = s.y + h * dim;
        for (std::size_t i = 0; i < dim; ++i) y[i] = 0;
        for (std::size_t b = 0; b < blocks; ++b) {
            const float* from = first + b * s.partial();
            const float factor = __builtin_expf(from[padded] - most);
            total += from[padded + 1] * factor;
            for (std::size_t i = 0; i < dim; i += kLanes)
                store(y + i, load(y + i, dim - i) + load(from + i) * splat(factor), dim - i);
        }
        multiply(y, dim, 1.0F / total);
        if (!s.gated) continue;
        const float* gate = s.q + (2 * h + 1) * dim;
        for (std::size_t i = 0; i < dim; i += kLanes)
            store(y + i, load(y + i, dim - i) * sigmoid(load(gate + i, dim - i)), dim - i);
    }
}

#include "chunk_attention_rows.h"
