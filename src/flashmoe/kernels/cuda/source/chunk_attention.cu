// Attention of the tokens of a chunk between their projections: rows made ready and held, then
// tiles of 64 queries of a head against tiles of 64 keys, in float32.
//
// Keys are taken in tiles counted from the timeline's start, each tile's softmax merged into those
// before it, in order, and every sum has one fixed order. So no result depends on which tokens pass
// together, nor on keys beyond the query's own position. Twin: attend of kernels/mixers.py.

#include "attention_row.cuh"

constexpr int kQueries = 64, kKeys = 64, kPitch = 64 + 4;

// Keys and values of a layer, (kv_heads, context, width) each; scales (kv_heads, context) of int8.
struct HeldRows {
    void *keys, *values;
    float *key_scales, *value_scales;
    int form, context;
};

template <int width>
DEVICE void append_row(const HeldRows& held, bool key, const Row<width>& row, int64_t place,
                       int half) {
    void* rows = key ? held.keys : held.values;
    float* scale = (key ? held.key_scales : held.value_scales) + place;
    switch (held.form) {
        case kF32: return append<kF32>(row, rows, place * width, scale, half);
        case kF16: return append<kF16>(row, rows, place * width, scale, half);
        case kBF16: return append<kBF16>(row, rows, place * width, scale, half);
        default: return append<kInt8>(row, rows, place * width, scale, half);
    }
}

// Queries normalized, rotated and scaled to `queries` (rows, heads, width); keys and values to
// where they are held. A warp has one of them; blocks of eight, by token (y).
template <int width>
DEVICE void prepare_rows(const float* q, const float* k, const float* v, const float* frequencies,
                         const float* q_norm, const float* k_norm, float eps, int start, int heads,
                         int kv_heads, int half, int gated, const HeldRows& held, float* queries) {
    const int task = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32);
    const int64_t token = blockIdx.y;
    const int position = start + static_cast<int>(token), lane = static_cast<int>(threadIdx.x) % 32;
    if (task >= heads + 2 * kv_heads) return;
    const bool query = task < heads, key = !query && task < heads + kv_heads;
    const int head = query ? task : (task - heads) % kv_heads;
    const float* from = query ? q + (token * heads + head) * (gated ? 2 : 1) * width
                              : (key ? k : v) + (token * kv_heads + head) * width;
    Row<width> row = load_row<width>(from, half);
    if (query || key) {
        const float* norm = query ? q_norm : k_norm;
        if (norm != nullptr) normalize(row, norm, eps, half);
        rotate(row, turns<width>(frequencies, position, half));
    }
    if (!query) return append_row(held, key, row, int64_t{head} * held.context + position, half);
    const float scale = 1.0F / sqrtf(static_cast<float>(width));
    float* to = queries + (token * heads + head) * width;
#pragma unroll
    for (int i = 0; i < row.kPairs; ++i) {
        to[row.first_at(lane + 32 * i, half)] = row.first[i] * scale;
        to[row.second_at(lane + 32 * i, half)] = row.second[i] * scale;
    }
}

// Four numbers of a held row, from element `at` on.
DEVICE float4 load_held(const void* rows, const float* scales, int form, int64_t place, int width,
                        int dimension) {
    const int64_t at = place * width + dimension;
    if (form == kF32) return *reinterpret_cast<const float4*>(static_cast<const float*>(rows) + at);
    if (form == kInt8) {
        const auto word =
            *reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(rows) + at);
        const float scale = scales[place];
        return {static_cast<int8_t>(word) * scale, static_cast<int8_t>(word >> 8) * scale,
                static_cast<int8_t>(word >> 16) * scale, static_cast<int8_t>(word >> 24) * scale};
    }
    const auto words = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(rows) + at);
    const uint16_t bits[4] = {static_cast<uint16_t>(words.x), static_cast<uint16_t>(words.x >> 16),
                              static_cast<uint16_t>(words.y), static_cast<uint16_t>(words.y >> 16)};
    if (form == kF16)
        return {half_to_float(bits[0]), half_to_float(bits[1]), half_to_float(bits[2]),
                half_to_float(bits[3])};
    return {bf16_to_float(bits[0]), bf16_to_float(bits[1]), bf16_to_float(bits[2]),
            bf16_to_float(bits[3])};
}

// Shared memory of a block.
template <int width>
struct Tile {
    alignas(16) float queries[width][kPitch];  // dimension by dimension
    alignas(16) float keys[width][kPitch];     // likewise; then values, key by key
    alignas(16) float weights[kKeys][kPitch];  // key by key

    DEVICE float* values() { return &keys[0][0]; }
};

// As chunk_attention.py says.
static_assert(sizeof(Tile<64>) == 52224 && sizeof(Tile<128>) == 87040 &&
              sizeof(Tile<256>) == 156672);

// What a thread has: four queries, from 4 (thread / 16) on; of a tile's scores the keys from 4
// (thread % 16) on, of the sums four dimensions of each 64 from there on.
template <int width>
struct Sums {
    float y[4][width / 64][4] = {};
    float most[4], total[4] = {};
};

template <int width>
DEVICE void score(Tile<width>& tile, int first_key, int first_position, int queries, int keys,
                  Sums<width>& sums) {
    float scores[4][4] = {};
#pragma unroll 8
    for (int d = 0; d < width; ++d) {
        const auto q = *reinterpret_cast<const float4*>(&tile.queries[d][queries]);
        const auto k = *reinterpret_cast<const float4*>(&tile.keys[d][keys]);
        const float qs[4] = {q.x, q.y, q.z, q.w}, ks[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
        for (int i = 0; i < 16; ++i)
            scores[i / 4][i % 4] = fmaf(qs[i / 4], ks[i % 4], scores[i / 4][i % 4]);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        float now = sums.most[r], sum = 0.0F;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            if (first_key + keys + c > first_position + queries + r) scores[r][c] = -infinity();
            now = fmaxf(now, scores[r][c]);
        }
        for (int mask = 8; mask; mask >>= 1) now = fmaxf(now, shuffle_xor(now, mask));
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const float weight = expf(scores[r][c] - now);
            tile.weights[keys + c][queries + r] = weight;
            sum += weight;
        }
        for (int mask = 8; mask; mask >>= 1) sum += shuffle_xor(sum, mask);
        const float factor = expf(sums.most[r] - now);
        sums.total[r] = fmaf(sums.total[r], factor, sum);
        sums.most[r] = now;
#pragma unroll
        for (int i = 0; i < width / 16; ++i) sums.y[r][i / 4][i % 4] *= factor;
    }
}

// `masked`: some of the tile's keys are beyond some queries, and their values may be anything.
template <int width, bool masked>
DEVICE void weigh(Tile<width>& tile, int first_key, int first_position, int queries, int column,
                  int count, Sums<width>& sums) {
#pragma unroll 2
    for (int key = 0; key < count; ++key) {
        const auto w = *reinterpret_cast<const float4*>(&tile.weights[key][queries]);
        const float ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int part = 0; part < width / 64; ++part) {
            const auto v =
                *reinterpret_cast<const float4*>(tile.values() + key * width + 64 * part + column);
            const float vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                float& y = sums.y[i / 4][part][i % 4];
                if (!masked || first_key + key <= first_position + queries + i / 4)
                    y = fmaf(ws[i / 4], vs[i % 4], y);
            }
        }
    }
}

// y (rows, heads, width) of prepared queries, gated by the second half of each head of `q`, if it
// has one. Blocks of 64 tokens (x, the last ones first) of a head (y).
template <int width>
DEVICE void attend(const float* queries, const float* q, int gated, int start, int rows,
                   int kv_heads, const HeldRows& held, float* y, unsigned char* shared) {
    auto& tile = *reinterpret_cast<Tile<width>*>(shared);
    const int thread = static_cast<int>(threadIdx.x);
    const int heads = static_cast<int>(gridDim.y), head = static_cast<int>(blockIdx.y);
    const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
    const int count = min(kQueries, rows - first), first_position = start + first;
    const int64_t before = int64_t{head / (heads / kv_heads)} * held.context;
    for (int i = thread; i < kQueries * width / 4; i += 256) {
        const int query = i % kQueries, dimension = i / kQueries * 4;
        const int64_t token = first + min(query, count - 1);
        const auto v =
            *reinterpret_cast<const float4*>(queries + (token * heads + head) * width + dimension);
        tile.queries[dimension][query] = v.x, tile.queries[dimension + 1][query] = v.y;
        tile.queries[dimension + 2][query] = v.z, tile.queries[dimension + 3][query] = v.w;
    }
    Sums<width> sums;
#pragma unroll
    for (int r = 0; r < 4; ++r) sums.most[r] = -infinity();
    const int mine = thread / 16 * 4, column = thread % 16 * 4, end = first_position + count;
    for (int key = 0; key < end; key += kKeys) {
        const int keys = min(kKeys, end - key);
        for (int i = thread; i < kKeys * width / 4; i += 256) {
            const int at = i % kKeys, dimension = i / kKeys * 4;
            const auto v = load_held(held.keys, held.key_scales, held.form,
                                     before + key + min(at, keys - 1), width, dimension);
            tile.keys[dimension][at] = v.x, tile.keys[dimension + 1][at] = v.y;
            tile.keys[dimension + 2][at] = v.z, tile.keys[dimension + 3][at] = v.w;
        }
        block_barrier();
        score(tile, key, first_position, mine, column, sums);
        block_barrier();
        for (int i = thread; i < keys * width / 4; i += 256)
            *reinterpret_cast<float4*>(tile.values() + 4 * i) =
                load_held(held.values, held.value_scales, held.form, before + key + 4 * i / width,
                          width, 4 * i % width);
        block_barrier();
        if (key + keys - 1 > first_position)
            weigh<width, true>(tile, key, first_position, mine, column, keys, sums);
        else
            weigh<width, false>(tile, key, first_position, mine, column, keys, sums);
        block_barrier();
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        if (mine + r >= count) break;
        const int64_t place = int64_t{first + mine + r} * heads + head;
#pragma unroll
        for (int i = 0; i < width / 16; ++i) {
            const int dimension = 64 * (i / 4) + column + i % 4;
            float value = sums.y[r][i / 4][i % 4] / sums.total[r];
            if (gated) value *= sigmoid(q[(2 * place + 1) * width + dimension]);
            y[place * width + dimension] = value;
        }
    }
}

KERNEL(256)
prepare_64(const float* q, const float* k, const float* v, const float* frequencies,
           const float* q_norm, const float* k_norm, float eps, int start, int heads, int kv_heads,
           int half, int gated, float* queries, void* keys, void* values, float* key_scales,
           float* value_scales, int form, int context) {
    const HeldRows held{keys, values, key_scales, value_scales, form, context};
    prepare_rows<64>(q, k, v, frequencies, q_norm, k_norm, eps, start, heads, kv_heads, half, gated,
                     held, queries);
}

KERNEL(256)
attend_64(const float* queries, const float* q, int gated, int start, int rows, int kv_heads,
          float* y, void* keys, void* values, float* key_scales, float* value_scales, int form,
          int context) {
    DYNAMIC_SHARED(shared);
    const HeldRows held{keys, values, key_scales, value_scales, form, context};
    attend<64>(queries, q, gated, start, rows, kv_heads, held, y, shared);
}

KERNEL(256)
prepare_128(const float* q, const float* k, const float* v, const float* frequencies,
            const float* q_norm, const float* k_norm, float eps, int start, int heads, int kv_heads,
            int half, int gated, float* queries, void* keys, void* values, float* key_scales,
            float* value_scales, int form, int context) {
    const HeldRows held{keys, values, key_scales, value_scales, form, context};
    prepare_rows<128>(q, k, v, frequencies, q_norm, k_norm, eps, start, heads, kv_heads, half,
                      gated, held, queries);
}

KERNEL(256)
attend_128(const float* queries, const float* q, int gated, int start, int rows, int kv_heads,
           float* y, void* keys, void* values, float* key_scales, float* value_scales, int form,
           int context) {
    DYNAMIC_SHARED(shared);
    const HeldRows held{keys, values, key_scales, value_scales, form, context};
    attend<128>(queries, q, gated, start, rows, kv_heads, held, y, shared);
}

KERNEL(256)
prepare_256(const float* q, const float* k, const float* v, const float* frequencies,
            const float* q_norm, const float* k_norm, float eps, int start, int heads, int kv_heads,
            int half, int gated, float* queries, void* keys, void* values, float* key_scales,
            float* value_scales, int form, int context) {
    const HeldRows held{keys, values, key_scales, value_scales, form, context};
    prepare_rows<256>(q, k, v, frequencies, q_norm, k_norm, eps, start, heads, kv_heads, half,
                      gated, held, queries);
}

KERNEL(256)
attend_256(const float* queries, const float* q, int gated, int start, int rows, int kv_heads,
           float* y, void* keys, void* values, float* key_scales, float* value_scales, int form,
           int context) {
    DYNAMIC_SHARED(shared);
    const HeldRows held{keys, values, key_scales, value_scales, form, context};
    attend<256>(queries, q, gated, start, rows, kv_heads, held, y, shared);
}
