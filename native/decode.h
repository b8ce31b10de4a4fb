// What a decode step computes besides products: norms, the gated delta rule, attention, routing.
//
// Owns the formulas of one token's mixers and the split into threads. Vector code is written once,
// in decode_rows.h, and compiled for each instruction set (decode_*.cpp). Arrays are row-major,
// contiguous float32, aligned to 4 bytes.
//
// Invariants, each a test: a head, or a block of kContextBlock keys of one, is computed whole, by
// one thread, in one fixed order, so no result depends on the number of threads. NaN and infinity
// in what goes in show in what comes out.
//
// exp is our own: within 3 * 2^-24 of the exact one, infinity above 88.73, 0 below -104.

#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

// One token of a gated delta net. H value heads over G key heads; value head h reads key head
// h / (H / G). Channels are queries (G, key_dim), keys (G, key_dim), values (H, value_dim):
//   c = silu(conv(conv_in, qkv)); q = l2(c_q) / sqrt(key_dim); k = l2(c_k); v = c_v
//   S = e^(decay * softplus(a + dt_bias)) S; S += k (sigmoid(b) (v - S'k))'; o = S'q
//   y = o / sqrt(mean(o^2) + eps) * norm * silu(z)
// conv_out and delta_out must not overlap conv_in and delta_in.
struct DeltaStep {
    std::size_t key_heads, value_heads, key_dim, value_dim, taps;
    const float* conv;             // (taps, channels): the last tap meets this token
    const float *decay, *dt_bias;  // (H)
    const float* norm;             // (value_dim)
    float eps;
    const float *qkv, *z, *b, *a;  // (channels), (H, value_dim), (H), (H)
    const float* conv_in;          // (taps - 1, channels), oldest first
    const float* delta_in;         // (H, key_dim, value_dim)
    float *conv_out, *delta_out;
    float* y;  // (H, value_dim)

    std::size_t channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
    std::size_t scratch() const { return 2 * key_dim + value_dim; }  // floats a worker
};

enum class KvKind : int { f32 = 0, bf16 = 1, int8 = 2, f16 = 3 };

// Keys and values of one layer, each (kv_heads, context, dim). int8 codes have a float32 scale a
// token and head, (kv_heads, context): value = code * scale. What f16 cannot hold is infinity.
struct KeyValues {
    KvKind kind;
    void *keys, *values;
    float *key_scales, *value_scales;  // null unless int8
    std::size_t heads, context, dim;
};

constexpr std::size_t kContextBlock = 256;  // keys of one partial softmax

// One token of grouped-query attention at `position`, whose key and value are appended first:
//   q, k = rotary(norm(q)), rotary(norm(k)); y = softmax(q K' / sqrt(dim)) V [* sigmoid(gate)]
// cos and sin (rope_dims / 2) are those of the position; pairs are (i, i + rope_dims / 2).
struct AttendStep {
    std::size_t heads, rope_dims;
    bool gated;  // q is (heads, 2, dim): a head's queries, then its gate
    float eps;
    const float *q_norm, *k_norm;  // (dim), or null: no norm
    const float *q, *k, *v;        // k and v (kv_heads, dim)
    const float *cos, *sin;
    KeyValues kv;
    std::size_t position;
    float* y;  // (heads, dim)

    std::size_t group() const { return heads / kv.heads; }
    std::size_t blocks() const { return position / kContextBlock + 1; }
    std::size_t padded() const { return (kv.dim + 15) / 16 * 16; }    // of a query in scratch
    std::size_t partial() const { return group() * (padded() + 2); }  // floats a block
};

struct AttendChunk;  // chunk_attention.h

// The part that depends on the instruction set, under the rule of RowKernels in dispatch.h.
struct DecodeKernels {
    // y = x / sqrt(mean(x^2) + eps) * weight, a row at a time.
    void (*rms_norm)(const float* x, std::size_t rows, std::size_t width, const float* weight,
                     float eps, float* y);
    // gate = silu(gate) * up.
    void (*swiglu)(float* gate, const float* up, std::size_t count);
    // y (width) = sum over places, in order, of weights (places) * x (places, width).
    void (*combine)(const float* x, const float* weights, std::size_t places, std::size_t width,
                    float* y);
    // y *= sigmoid(gate), a gate a row.
    void (*scale)(const float* gate, std::size_t rows, std::size_t width, float* y);
    // The `top` largest of each row of logits (rows, count), ties to the lower index, and their
    // softmax probabilities over all, divided by their own sum if `renormalize`.
    void (*route)(const float* logits, std::size_t rows, std::size_t count, std::size_t top,
                  bool renormalize, std::int64_t* ids, float* weights);
    // Key heads [begin, end) and all that reads them.
    void (*delta)(const DeltaStep& step, std::size_t begin, std::size_t end, float* scratch);
    // Appends the token; the scaled queries (heads, padded), zeros beyond dim.
    void (*append)(const AttendStep& step, float* queries);
    // Units [begin, end) of kv head * blocks + block, each to its place in `partials`: for every
    // head of the group the sum of exp(score - max) * value, then max, then the sum of exp.
    void (*attend)(const AttendStep& step, const float* queries, std::size_t begin, std::size_t end,
                   float* partials, float* scores);
    // Heads [begin, end) from their blocks, in order, gated.
    void (*merge)(const AttendStep& step, const float* partials, std::size_t begin,
                  std::size_t end);
    void (*append_chunk)(const AttendChunk& chunk, std::size_t begin, std::size_t end,
                         float* scratch);
    void (*attend_chunk)(const AttendChunk& chunk, std::size_t unit, float* scratch);
};

extern const DecodeKernels decode_generic;
extern const DecodeKernels decode_avx2, decode_avx512;  // x86-64 builds only

struct InstructionSet;  // dispatch.h

// y = x / sqrt(mean(x^2) + eps) * weight for each of `rows`, and y += x.
void rms_norm(const InstructionSet& set, const float* x, std::size_t rows, std::size_t width,
              const float* weight, float eps, float* y, int threads);
void add(const float* x, std::size_t count, float* y, int threads);

void gated_delta(const InstructionSet& set, const DeltaStep& step, int threads);

void attend(const InstructionSet& set, const AttendStep& step, int threads);

}  // namespace flashmoe
