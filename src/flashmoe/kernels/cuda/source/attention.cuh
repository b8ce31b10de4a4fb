// One token's attention between its projections: what each block of attend_* does.
//
// Block `split` of a kv head takes every so many-th tile of keys; merge() (attention.cu) combines
// what the blocks found, in their order. So the grid is the same for every length, and the sums
// depend on nothing but the length. All query heads of a kv head share each read. The queries are
// prepared by each block anew, which costs less than a launch; the block that has the last tile
// appends the token's key and value. Twin: attend of kernels/mixers.py.

#pragma once

#include "attention_share.cuh"

// As attention.py writes it.
struct Attention {
    const float* frequencies;      // (rope_dims / 2)
    const float *q_norm, *k_norm;  // (head_dim), or null
    int heads, kv_heads, rope_dims, gated;
    float eps;
};

// This token's queries to fragments; where this block has the last tile, its key and value to where
// they are held.
template <int form, int width, bool wide>
DEVICE void prepare(const Attention& layer, const float* inputs, const Held& held, int head,
                    int position, bool last, uint32_t* fragments) {
    constexpr int kRows = wide ? 16 : 8;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int half = layer.rope_dims / 2, group = layer.heads / layer.kv_heads;
    const int query_width = layer.gated ? 2 * width : width;
    const float* own = inputs + int64_t{layer.heads} * query_width + head * width;
    const int64_t place = int64_t{head} * held.context + position;
    const float scale = 1.0F / sqrtf(static_cast<float>(width));
    const Row<width> by = turns<width>(layer.frequencies, position, half);
    for (int task = warp; task < kRows + (last ? 2 : 0); task += kWarps) {
        const bool query = task < kRows, key = task == kRows;
        Row<width> row = {};
        if (!query) {
            row = load_row<width>(key ? own : own + layer.kv_heads * width, half);
        } else if (task < group) {
            row = load_row<width>(inputs + (head * group + task) * query_width, half);
        }
        const float* norm = query ? layer.q_norm : layer.k_norm;
        if (query || key) {
            if (norm != nullptr) normalize(row, norm, layer.eps, half);
            rotate(row, by);
        }
        if (query) {
#pragma unroll
            for (int i = 0; i < row.kPairs; ++i) {
                const int pair = lane + 32 * i;
                place_query<width, wide>(fragments, task, row.first_at(pair, half),
                                         row.first[i] * scale);
                place_query<width, wide>(fragments, task, row.second_at(pair, half),
                                         row.second[i] * scale);
            }
        } else if (key) {
            append<form>(row, held.keys, place * width, held.key_scales + place, half);
        } else {
            append<form>(row, held.values, place * width, held.value_scales + place, half);
        }
    }
}

// inputs is [q (heads, head_dim), or (heads, 2, head_dim) of queries and gates | k | v (kv_heads,
// head_dim)]; `position` how many tokens came before, less than `context`. Grid (splits, kv_heads);
// out (heads, splits, width) and ends (heads, splits), a maximum and a sum, are merge()'s.
template <int form, int width, bool wide>
DEVICE void attend(const Attention layer, const Held held, const float* inputs, int position,
                   float* out, float2* ends) {
    DYNAMIC_SHARED(shared);
    const int split = static_cast<int>(blockIdx.x), splits = static_cast<int>(gridDim.x);
    const int head = static_cast<int>(blockIdx.y);
    const int tiles = position / kTile + 1;
    if (split >= tiles) return;
    Share<form, width, wide> share(held, shared, head, position + 1);
    // Under way meanwhile, unless it waits for this very token.
    if (split + 1 < tiles) share.load_keys(split);
    const bool last = (tiles - 1) % splits == split;
    prepare<form, width, wide>(layer, inputs, held, head, position, last, share.fragments);
    block_barrier();
    if (split + 1 == tiles) share.load_keys(split);
    int buffer = 0;
    for (int tile = split; tile < tiles; tile += splits, buffer ^= 1) {
        share.load_values(tile);
        share.score(tile, buffer);
        if (tile + splits < tiles) share.load_keys(tile + splits);
        block_barrier();
        share.weigh(buffer);
    }
    share.finish(layer.heads / layer.kv_heads, split, splits, out, ends);
}
