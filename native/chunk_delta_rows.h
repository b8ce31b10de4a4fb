// The vector code of chunk_delta.h, included once by the file of each instruction set, which
// defines FLASHMOE_LANES and FLASHMOE_TABLE (see vectors.h).
//
// Everything of a block lies on a Desk, in rows padded with zeros to whole vectors. Products are
// tiles of kRows rows and up to kWide vectors, whose sums stay in registers; the state lies in
// panels as wide as a tile, so that a panel stays in the nearest cache while all rows pass it.

#include <cstddef>

#include "chunk_delta.h"
#include "tiles.h"
#include "vectors.h"

namespace flashmoe {
namespace {

constexpr std::size_t kPanel = kWide * kLanes;  // columns of a panel
constexpr std::size_t kBlock = kDeltaBlock;
constexpr bool kBoth[] = {false, true};
constexpr std::size_t kAhead = 8;  // tokens between asking for a row and using it
constexpr std::size_t kLine = 16;  // floats of a line of cache
constexpr float kLeast = -80.0F;   // logarithm of the least decay

constexpr std::size_t up(std::size_t count, std::size_t to) { return (count + to - 1) / to * to; }

// Where the arrays of one block lie. Strides: keys and values are padded dimensions.
struct Desk {
    std::size_t keys, values;
    float* turned;               // (keys, kBlock): the keys, a token a column
    float *q, *k;                // (kBlock, keys)
    float *v, *o;                // (kBlock, values)
    float *kk, *qk;              // (kBlock, kBlock): products of all value heads
    float *system, *mixing;      // (kBlock, kBlock): A and Q K' D of one value head
    float *x, *faded;            // (kBlock, kPanel): a panel of X, and of e^(G_C - G) X
    float *total, *rest;         // (kBlock): G in two parts, the second what the first rounds off
    float *grown, *fade, *beta;  // (kBlock): e^G, e^(G_C - G), b
    float* states;               // a value head after the other, in panels (keys, kPanel)

    Desk(const DeltaStep& s, float* scratch)
        : keys(DeltaChunk::padded(s.key_dim)), values(DeltaChunk::padded(s.value_dim)) {
        turned = scratch;
        q = turned + kBlock * keys;
        k = q + kBlock * keys;
        v = k + kBlock * keys;
        o = v + kBlock * values;
        kk = o + kBlock * values;
        qk = kk + kBlock * kBlock;
        system = qk + kBlock * kBlock;
        mixing = system + kBlock * kBlock;
        x = mixing + kBlock * kBlock;
        faded = x + kBlock * kBlock;
        total = faded + kBlock * kBlock;
        rest = total + kBlock;
        grown = rest + kBlock;
        fade = grown + kBlock;
        beta = fade + kBlock;
        states = beta + kBlock;
    }
};

// Tokens [first, first + count) of a chunk, all of one block.
struct Block {
    std::size_t first, count;
    std::size_t rows() const { return up(count, kRows); }
};

// The convolution's input at `place`, counted from the oldest that the state holds.
FLASHMOE_INLINE const float* input_at(const DeltaChunk& c, std::size_t place) {
    const std::size_t past = c.step.taps - 1, channels = c.step.channels();
    return place < past ? c.step.conv_in + place * channels
                        : c.step.qkv + (place - past) * channels;
}

// Asks for memory that is wanted soon: rows of one head lie pages apart, where no processor sees
// them coming. Not too far ahead: they share few sets of the cache.
FLASHMOE_INLINE void expect(const float* row, std::size_t count) {
    for (std::size_t i = 0; i < count; i += kLine) __builtin_prefetch(row + i);
}

// silu of the convolution of channels [first, first + count), zeros beyond up to `stride`.
// kTaps is their number, or 0: any.
template <std::size_t kTaps>
void convolve_rows(const DeltaChunk& c, Block block, std::size_t first, std::size_t count,
                   float* into, std::size_t stride) {
    const std::size_t channels = c.step.channels(), taps = kTaps == 0 ? c.step.taps : kTaps;
    for (std::size_t t = 0; t < block.count; ++t) {
        for (std::size_t i = up(count, kLanes); i < stride; ++i) into[t * stride + i] = 0;
        const std::size_t later = block.first + t + kAhead;
        if (later < c.tokens) expect(c.step.qkv + later * channels + first, count);
        for (std::size_t i = 0; i < count; i += kLanes) {
            const std::size_t left = count - i, at = first + i;
            Vec total{};
#pragma GCC unroll 4
            for (std::size_t tap = 0; tap < taps; ++tap)
                total += load(input_at(c, block.first + t + tap) + at, left) *
                         load(c.step.conv + tap * channels + at, left);
            store(into + t * stride + i, total * sigmoid(total));
        }
    }
}

void convolve(const DeltaChunk& c, Block block, std::size_t first, std::size_t count, float* into,
              std::size_t stride) {
    const auto rows = c.step.taps == 4 ? convolve_rows<4> : convolve_rows<0>;
    rows(c, block, first, count, into, stride);
}

// The last inputs of channels [first, first + count), for the next pass.
void keep_inputs(const DeltaChunk& c, std::size_t first, std::size_t count) {
    const std::size_t channels = c.step.channels();
    for (std::size_t tap = 0; tap + 1 < c.step.taps; ++tap) {
        const float* from = input_at(c, c.tokens + tap) + first;
        __builtin_memcpy(c.step.conv_out + tap * channels + first, from, count * sizeof(float));
    }
}

void clear(float* from, std::size_t count) { __builtin_memset(from, 0, count * sizeof(float)); }

// Scales each row to the length `root`.
void normalise(float* rows, std::size_t count, std::size_t width, float root) {
    for (std::size_t t = 0; t < count; ++t, rows += width)
        multiply(rows, width, root / __builtin_sqrtf(sum_of_squares(rows, width) + 1e-6F));
}

// The first `rows` rows of a matrix as columns; both numbers are multiples of four.
void turn(const float* from, std::size_t rows, std::size_t width, float* to) {
    const auto row = [](const float* at) {
        Vec4 v;
        __builtin_memcpy(&v, at, sizeof v);
        return v;
    };
    for (std::size_t t = 0; t < rows; t += 4)
        for (std::size_t i = 0; i < width; i += 4) {
            const float* at = from + t * width + i;
            const Vec4 a = row(at), b = row(at + width);
            const Vec4 c = row(at + 2 * width), d = row(at + 3 * width);
            const Vec4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            const Vec4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            const Vec4 above = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            const Vec4 under = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            const Vec4 columns[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5),
                                     __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                                     __builtin_shufflevector(above, under, 0, 1, 4, 5),
                                     __builtin_shufflevector(above, under, 2, 3, 6, 7)};
            for (std::size_t j = 0; j < 4; ++j)
                __builtin_memcpy(to + (i + j) * kBlock + t, &columns[j], sizeof(Vec4));
        }
}

// What all value heads of a key head share: q, k, and on and below the diagonal q'k and k'k. What
// lies above it is undefined.
void prepare_keys(const DeltaChunk& c, const Desk& desk, Block block, std::size_t group) {
    const DeltaStep& s = c.step;
    const std::size_t first = group * s.key_dim, rows = up(block.count, kLanes);
    const float root = 1.0F / __builtin_sqrtf(static_cast<float>(s.key_dim));
    for (const bool keys : kBoth) {
        float* into = keys ? desk.k : desk.q;
        clear(into + block.count * desk.keys, (kBlock - block.count) * desk.keys);
        convolve(c, block, first + (keys ? s.key_heads * s.key_dim : 0), s.key_dim, into,
                 desk.keys);
        normalise(into, block.count, desk.keys, keys ? 1.0F : root);
    }
    turn(desk.k, up(rows, 4), desk.keys, desk.turned);
    for (std::size_t t = 0; t < block.count; t += kRows)
        for (std::size_t at = 0; at < t + kRows; at += kPanel)
            with_vectors(least(kWide, up(t + kRows - at, kLanes) / kLanes), [&](auto count) {
                Tile<count.value> kk{}, qk{};
                const float *b = desk.turned + at, *k = desk.k + t * desk.keys;
                accumulate<false>(kk, k, desk.keys, b, kBlock, s.key_dim);
                put(kk, desk.kk + t * kBlock + at, kBlock);
                accumulate<false>(qk, desk.q + t * desk.keys, desk.keys, b, kBlock, s.key_dim);
                put(qk, desk.qk + t * kBlock + at, kBlock);
            });
}

FLASHMOE_INLINE Vec decay_of(Vec logarithm) {
    return logarithm < splat(kLeast) ? Vec{} : exp_of(logarithm);
}

// e^g of one token's head by its logarithm, as a decode step has it.
float log_decay(const DeltaStep& s, float a, std::size_t head) {
    const float step = a + s.dt_bias[head];
    const float softplus =
        larger(step, 0.0F) + __builtin_log1pf(__builtin_expf(-__builtin_fabsf(step)));
    return s.decay[head] * (step != step ? step : softplus);
}

// Gates of one value head, and its A and Q K' D. Rows beyond the block are those of a token that
// neither writes nor forgets.
void prepare_head(const DeltaChunk& c, const Desk& desk, Block block, std::size_t head) {
    const DeltaStep& s = c.step;
    double sum = 0;
    for (std::size_t t = 0; t < kBlock; ++t) {
        const bool within = t < block.count;
        const std::size_t at = (block.first + t) * s.value_heads + head;
        if (within) sum += log_decay(s, s.a[at], head);
        desk.total[t] = static_cast<float>(sum);
        desk.rest[t] = static_cast<float>(sum - desk.total[t]);
        desk.beta[t] = within ? s.b[at] : 0.0F;
    }
    const Vec last = splat(desk.total[kBlock - 1]), rest = splat(desk.rest[kBlock - 1]);
    for (std::size_t t = 0; t < kBlock; t += kLanes) {
        const Vec total = load(desk.total + t), lower = load(desk.rest + t);
        store(desk.grown + t, decay_of(total));
        store(desk.fade + t, decay_of((last - total) + (rest - lower)));
        store(desk.beta + t, sigmoid(load(desk.beta + t)));
    }
    for (std::size_t t = block.count; t < kBlock; ++t) desk.beta[t] = 0;
    Ints first{};
    for (std::size_t j = 0; j < kLanes; ++j) first[j] = static_cast<std::int32_t>(j);
    for (std::size_t t = 0; t < block.rows(); ++t) {
        const Vec total = splat(desk.total[t]), lower = splat(desk.rest[t]);
        const std::int32_t row = static_cast<std::int32_t>(t);
        for (std::size_t i = 0; i < up(t + 1, kRows); i += kLanes) {
            const std::size_t at = t * kBlock + i;
            const Ints column = first + static_cast<std::int32_t>(i);
            const Vec decay =
                decay_of((total - load(desk.total + i)) + (lower - load(desk.rest + i)));
            const Vec kk = splat(desk.beta[t]) * load(desk.kk + at) * decay;
            const Vec qk = load(desk.qk + at) * decay;
            // Chosen, not multiplied: above the diagonal may be anything.
            store(desk.system + at, column < row ? kk : Vec{});
            store(desk.mixing + at, column <= row ? qk : Vec{});
        }
    }
}

// kCount vectors of columns of one value head, from column `at` on: X, O and the new state.
template <std::size_t kCount>
FLASHMOE_INLINE void pass_panel(const DeltaChunk& c, const Desk& desk, Block block, std::size_t at,
                                float* state) {
    constexpr std::size_t width = kCount * kLanes;
    const std::size_t dim = c.step.key_dim;
    for (std::size_t t = 0; t < block.rows(); t += kRows) {
        Tile<kCount> x{};
        accumulate<false>(x, desk.k + t * desk.keys, desk.keys, state, width, dim);
        scale_rows(x, desk.grown + t);
        const Tile<kCount> v = tile_at<kCount>(desk.v + t * desk.values + at, desk.values);
#pragma GCC unroll 4
        for (std::size_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (std::size_t j = 0; j < kCount; ++j)
                x.at[r][j] = (v.at[r][j] - x.at[r][j]) * splat(desk.beta[t + r]);
        const float* system = desk.system + t * kBlock;
        accumulate<true>(x, system, kBlock, desk.x, width, t);
#pragma GCC unroll 4
        for (std::size_t r = 1; r < kRows; ++r)
#pragma GCC unroll 4
            for (std::size_t before = 0; before < r; ++before)
#pragma GCC unroll 4
                for (std::size_t j = 0; j < kCount; ++j)
                    x.at[r][j] -= splat(system[r * kBlock + t + before]) * x.at[before][j];
        put(x, desk.x + t * width, width);
        scale_rows(x, desk.fade + t);
        put(x, desk.faded + t * width, width);
        Tile<kCount> o{};
        accumulate<false>(o, desk.q + t * desk.keys, desk.keys, state, width, dim);
        scale_rows(o, desk.grown + t);
        accumulate<false>(o, desk.mixing + t * kBlock, kBlock, desk.x, width, t + kRows);
        put(o, desk.o + t * desk.values + at, desk.values);
    }
    const float last = desk.grown[kBlock - 1];
    const float factors[kRows] = {last, last, last, last};
    for (std::size_t i = 0; i < dim; i += kRows) {
        Tile<kCount> sum = tile_at<kCount>(state + i * width, width);
        scale_rows(sum, factors);
        accumulate<false>(sum, desk.turned + i * kBlock, kBlock, desk.faded, width, block.count);
        put(sum, state + i * width, width);
    }
}

// Asks for what finish_rows will read and write of the token after `rows` others of the block.
FLASHMOE_INLINE void expect_gates(const DeltaChunk& c, Block block, std::size_t rows,
                                  std::size_t head) {
    if (rows >= block.count) return;
    const DeltaStep& s = c.step;
    const std::size_t at = ((block.first + rows) * s.value_heads + head) * s.value_dim;
    expect(s.z + at, s.value_dim);
    expect(s.y + at, s.value_dim);
}

// Norm and gate of one value head's outcome.
void finish_rows(const DeltaChunk& c, const Desk& desk, Block block, std::size_t head) {
    const DeltaStep& s = c.step;
    const std::size_t width = s.value_dim;
    for (std::size_t t = 0; t < block.count; ++t) {
        expect_gates(c, block, t + kAhead / 2, head);
        const float* o = desk.o + t * desk.values;
        const std::size_t at = ((block.first + t) * s.value_heads + head) * width;
        const Vec inverse = splat(inverse_rms(o, width, s.eps));
        for (std::size_t i = 0; i < width; i += kLanes) {
            const std::size_t left = width - i;
            const Vec z = load(s.z + at + i, left);
            const Vec normed = load(o + i, left) * inverse * load(s.norm + i, left);
            store(s.y + at + i, normed * (z * sigmoid(z)), left);
        }
    }
}

// Calls task(column, its count of vectors, where the panel lies) for each panel of a state.
template <class Task>
FLASHMOE_INLINE void each_panel(const Desk& desk, std::size_t place, Task task) {
    float* state = desk.states + place * desk.keys * desk.values;
    for (std::size_t at = 0; at < desk.values; at += kPanel)
        task(at, least(kWide, (desk.values - at) / kLanes), state + at * desk.keys);
}

// Takes a state (key_dim, value_dim) apart into panels, zeros around it, or puts it together.
void take_state(const DeltaStep& s, const Desk& desk, std::size_t place, const float* from) {
    each_panel(desk, place, [&](std::size_t at, std::size_t count, float* to) {
        for (std::size_t i = 0; i < desk.keys; ++i)
            for (std::size_t j = at; j < at + count * kLanes; j += kLanes, to += kLanes)
                store(to, i < s.key_dim && j < s.value_dim
                              ? load(from + i * s.value_dim + j, s.value_dim - j)
                              : Vec{});
    });
}

void give_state(const DeltaStep& s, const Desk& desk, std::size_t place, float* to) {
    each_panel(desk, place, [&](std::size_t at, std::size_t count, const float* from) {
        for (std::size_t i = 0; i < s.key_dim; ++i)
            for (std::size_t j = at; j < at + count * kLanes; j += kLanes, from += kLanes)
                if (j < s.value_dim) store(to + i * s.value_dim + j, load(from), s.value_dim - j);
    });
}

void heads(const DeltaChunk& c, std::size_t group, std::size_t begin, std::size_t end,
           float* scratch) {
    const DeltaStep& s = c.step;
    const Desk desk(s, scratch);
    const std::size_t keys = s.key_heads * s.key_dim, whole = s.key_dim * s.value_dim;
    const std::size_t first = group * c.repeat();
    for (std::size_t h = begin; h < end; ++h)
        take_state(s, desk, h - begin, s.delta_in + (first + h) * whole);
    for (std::size_t t = 0; t < c.tokens;) {
        const std::size_t past = (c.start + t) % kBlock;
        const Block block{t, least(kBlock - past, c.tokens - t)};
        prepare_keys(c, desk, block, group);
        for (std::size_t h = begin; h < end; ++h) {
            const std::size_t head = first + h;
            for (std::size_t ahead = 0; ahead < kAhead / 2; ++ahead)
                expect_gates(c, block, ahead, head);
            clear(desk.v + block.count * desk.values, (kBlock - block.count) * desk.values);
            convolve(c, block, 2 * keys + head * s.value_dim, s.value_dim, desk.v, desk.values);
            prepare_head(c, desk, block, head);
            each_panel(desk, h - begin, [&](std::size_t at, std::size_t count, float* state) {
                with_vectors(count, [&](auto vectors) {
                    pass_panel<vectors.value>(c, desk, block, at, state);
                });
            });
            finish_rows(c, desk, block, head);
        }
        t += block.count;
    }
    for (std::size_t h = begin; h < end; ++h) {
        give_state(s, desk, h - begin, s.delta_out + (first + h) * whole);
        keep_inputs(c, 2 * keys + (first + h) * s.value_dim, s.value_dim);
    }
    if (begin > 0) return;
    keep_inputs(c, group * s.key_dim, s.key_dim);
    keep_inputs(c, keys + group * s.key_dim, s.key_dim);
}

}  // namespace

const DeltaChunkKernels FLASHMOE_TABLE{heads};

}  // namespace flashmoe
