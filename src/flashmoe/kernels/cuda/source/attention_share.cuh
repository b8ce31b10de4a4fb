// A block's share of the keys: every so many-th tile of 64, weighed in one pass.
//
// Owns the split over warps and the shared memory. A warp scores eight keys of a tile, and weighs
// 64 dimensions of the values of some; the running maximum of a head is that of the whole block.
// The next tile's keys are on their way while this one's values are weighed.

#pragma once

#include "attention_products.cuh"

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kTile = 8 * kWarps;  // keys
constexpr int kPitch = kTile + 8;  // so that rows of scores begin in other banks

// As attention.py writes it: (kv_heads, context, head_dim) each; scales (kv_heads, context) of
// int8.
struct Held {
    void *keys, *values;
    float *key_scales, *value_scales;
    int context;
};

// Shared memory is 512 + 2 * kPitch + 3 * kWarps floats a row: fragments of the queries, later the
// sums; scores and their maxima, of two tiles in turn; the weights' sums.
template <int form, int width, bool wide>
struct Share {
    static constexpr int kRows = wide ? 16 : 8;       // query heads
    static constexpr int kHalves = wide ? 2 : 1;      // of which a lane has one each
    static constexpr int kChunks = width / 64;        // of 64 dimensions; a warp sums one
    static constexpr int kSteps = kChunks;            // times eight keys of it, a tile
    static constexpr int kGroups = kWarps / kChunks;  // of warps with other keys

    const Held& held;
    uint32_t* fragments;
    float *scores, *tops, *totals;
    int head, length;  // kv head; tokens, this one included
    int warp, g, t;    // lane 4 g + t

    Eight<form> keys[width / 32];
    float key_scales[2];
    Eight<form> values[kSteps][2];
    float value_scales[kSteps][2];
    float sums[8][4] = {};
    float most[kHalves], total[kHalves];

    DEVICE Share(const Held& held, unsigned char* shared, int head, int length)
        : held(held), head(head), length(length) {
        const int thread = static_cast<int>(threadIdx.x);
        warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
        fragments = reinterpret_cast<uint32_t*>(shared);
        scores = reinterpret_cast<float*>(shared) + 512 * kRows;
        tops = scores + 2 * kRows * kPitch;
        totals = tops + 2 * kRows * kWarps;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) most[h] = -infinity(), total[h] = 0.0F;
    }

    // Where a key's numbers begin, in rows. Behind the last key it is again the last: its scores
    // are struck out, and so nothing depends on what lies there, nor a load on a condition.
    DEVICE int64_t row(int key) const {
        return int64_t{head} * held.context + min(key, length - 1);
    }
    DEVICE int chunk() const { return warp % kChunks; }
    DEVICE int group() const { return warp / kChunks; }

    // The warp's eight of a tile.
    DEVICE void load_keys(int tile) {
        const int key = tile * kTile + warp * 8;
#pragma unroll
        for (int c = 0; c < width / 32; ++c)
            keys[c].load(held.keys, row(key + g) * width + 32 * c + 8 * t);
        if constexpr (form == kInt8)
#pragma unroll
            for (int k = 0; k < 2; ++k) key_scales[k] = held.key_scales[row(key + 2 * t + k)];
    }

    DEVICE void load_values(int tile) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const int64_t at = row(tile * kTile + (group() * kSteps + s) * 8 + 2 * t + k);
                values[s][k].load(held.values, at * width + 64 * chunk() + 8 * g);
                if constexpr (form == kInt8) value_scales[s][k] = held.value_scales[at];
            }
    }

    // Products of the keys with the queries, and the largest of each head, to shared memory.
    DEVICE void score(int tile, int buffer) {
        float products[4][4] = {};
        const auto* words = reinterpret_cast<const uint4*>(fragments);
#pragma unroll
        for (int c = 0; c < width / 32; ++c)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = (4 * c + j) * 32 + 4 * g + t;
                const uint4 v = words[at], w = wide ? words[4 * width + at] : v;
                const uint32_t a[4] = {v.x, v.y, v.z, v.w}, low[4] = {w.x, w.y, w.z, w.w};
                multiply<form, wide>(products[j], a, low, keys[c][2 * j], keys[c][2 * j + 1]);
            }
        float sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            sum[i] = (products[0][i] + products[1][i]) + (products[2][i] + products[3][i]);
        if constexpr (!wide) sum[0] += sum[2], sum[1] += sum[3];
        const int key = tile * kTile + warp * 8 + 2 * t;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            float2 pair{sum[2 * h], sum[2 * h + 1]};
            if constexpr (form == kInt8) pair.x *= key_scales[0], pair.y *= key_scales[1];
            if (key >= length) pair.x = -infinity();
            if (key + 1 >= length) pair.y = -infinity();
            const int at = buffer * kRows + g + 8 * h;
            *reinterpret_cast<float2*>(scores + at * kPitch + warp * 8 + 2 * t) = pair;
            float top = fmaxf(pair.x, pair.y);
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            if (t == 0) tops[at * kWarps + warp] = top;
        }
    }

    // All warps' scores of a tile are there: weighs the values with them.
    DEVICE void weigh(int buffer) {
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            const float* found = tops + (buffer * kRows + g + 8 * h) * kWarps;
            float now = most[h];
#pragma unroll
            for (int w = 0; w < kWarps; ++w) now = fmaxf(now, found[w]);
            const float factor = expf(most[h] - now);
            most[h] = now;
            total[h] *= factor;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sums[i][2 * h] *= factor, sums[i][2 * h + 1] *= factor;
                if constexpr (!wide) sums[i][2] *= factor, sums[i][3] *= factor;
            }
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
            uint32_t a[4], low[4];
#pragma unroll
            for (int h = 0; h < kHalves; ++h) {
                const float* from = scores + (buffer * kRows + g + 8 * h) * kPitch;
                const auto pair =
                    *reinterpret_cast<const float2*>(from + (group() * kSteps + s) * 8 + 2 * t);
                float x = expf(pair.x - most[h]), y = expf(pair.y - most[h]);
                total[h] += x + y;
                if constexpr (form == kInt8) x *= value_scales[s][0], y *= value_scales[s][1];
                const Parts p = parted(x), q = parted(y);
                if constexpr (wide) {
                    a[h] = p.high, a[2 + h] = q.high, low[h] = p.low, low[2 + h] = q.low;
                } else {
                    a[0] = p.high, a[1] = p.low, a[2] = q.high, a[3] = q.low;
                }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
                multiply<form, wide>(sums[i], a, low, values[s][0][i], values[s][1][i]);
        }
    }

    // The warps' sums together; to `out` (heads, splits, width) and `ends` (heads, splits).
    DEVICE void finish(int query_heads, int split, int splits, float* out, float2* ends) {
        auto* room = reinterpret_cast<float*>(fragments);  // (warps, kRows, 64); last read long ago
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            float* to = room + (warp * kRows + g + 8 * h) * 64 + 16 * t;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                to[i] = sums[i][2 * h] + (wide ? 0.0F : sums[i][2]);
                to[8 + i] = sums[i][2 * h + 1] + (wide ? 0.0F : sums[i][3]);
            }
            total[h] += shuffle_xor(total[h], 1);
            total[h] += shuffle_xor(total[h], 2);
            if (t == 0 && chunk() == 0) totals[group() * kRows + g + 8 * h] = total[h];
        }
        block_barrier();
        const int thread = static_cast<int>(threadIdx.x), first = head * query_heads;
        for (int i = thread; i < query_heads * width; i += kThreads) {
            const int row = i / width, dimension = i % width;
            float sum = 0.0F;
#pragma unroll
            for (int k = 0; k < kGroups; ++k)
                sum += room[((k * kChunks + dimension / 64) * kRows + row) * 64 + dimension % 64];
            out[(int64_t{first + row} * splits + split) * width + dimension] = sum;
        }
        if (warp != 0 || t != 0) return;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            float sum = 0.0F;
#pragma unroll
            for (int k = 0; k < kGroups; ++k) sum += totals[k * kRows + g + 8 * h];
            if (g + 8 * h < query_heads)
                ends[(first + g + 8 * h) * splits + split] = {most[h], sum};
        }
    }
};
