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

// Shared memory of a block. Of keys and values there are 64 dimensions at a time.
template <int width>
struct Tile {
    alignas(16) float queries[width][kQueries];  // dimension by dimension
    alignas(16) float held[64][64];              // keys likewise; values key by key
    alignas(16) float weights[kKeys][kPitch];    // key by key
};

// As chunk_attention.py says.
static_assert(sizeof(Tile<64>) == 50176 && sizeof(Tile<128>) == 66560 &&
              sizeof(Tile<256>) == 99328);

// What a thread has: four queries, from 4 (thread / 16) on; of a tile's scores the keys from 4
// (thread % 16) on, of the sums four dimensions of each 64 from there on.
template <int width>
struct Sums {
    float y[4][width / 64][4] = {};
    float most[4], total[4] = {};
};

// d += a' b
DEVICE void add_products(const float4& a, const float4& b, float (&d)[4][4]) {
    const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) d[i / 4][i % 4] = fmaf(as[i / 4], bs[i % 4], d[i / 4][i % 4]);
}

// The scores of a tile become weights, beside those of the tiles before; keys beyond a query have
// none.
template <int width>
DEVICE void merge(Tile<width>& tile, float (&scores)[4][4], int key, int position, int mine,
                  int column, Sums<width>& sums) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        float now = sums.most[r], sum = 0.0F;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            if (key + column + c > position + mine + r) scores[r][c] = -infinity();
            now = fmaxf(now, scores[r][c]);
        }
        for (int mask = 8; mask; mask >>= 1) now = fmaxf(now, shuffle_xor(now, mask));
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            scores[r][c] = expf(scores[r][c] - now);
            sum += scores[r][c];
        }
        for (int mask = 8; mask; mask >>= 1) sum += shuffle_xor(sum, mask);
        const float factor = expf(sums.most[r] - now);
        sums.total[r] = fmaf(sums.total[r], factor, sum);
        sums.most[r] = now;
#pragma unroll
        for (int i = 0; i < width / 16; ++i) sums.y[r][i / 4][i % 4] *= factor;
    }
#pragma unroll
    for (int c = 0; c < 4; ++c)
        *reinterpret_cast<float4*>(&tile.weights[column + c][mine]) = {scores[0][c], scores[1][c],
                                                                       scores[2][c], scores[3][c]};
}

// Where some keys are beyond some queries (`masked`), their values may be anything.
template <int width>
DEVICE void weigh(const Tile<width>& tile, bool masked, int key, int position, int mine, int column,
                  int keys, float (&y0)[4], float (&y1)[4], float (&y2)[4], float (&y3)[4]) {
    float sums[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        sums[0][i] = y0[i], sums[1][i] = y1[i], sums[2][i] = y2[i], sums[3][i] = y3[i];
    if (!masked) {
#pragma unroll 8
        for (int k = 0; k < keys; ++k)
            add_products(*reinterpret_cast<const float4*>(&tile.weights[k][mine]),
                         *reinterpret_cast<const float4*>(&tile.held[k][column]), sums);
    } else {
        for (int k = 0; k < keys; ++k)
#pragma unroll
            for (int i = 0; i < 16; ++i)
                if (key + k <= position + mine + i / 4)
                    sums[i / 4][i % 4] = fmaf(tile.weights[k][mine + i / 4],
                                              tile.held[k][column + i % 4], sums[i / 4][i % 4]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        y0[i] = sums[0][i], y1[i] = sums[1][i], y2[i] = sums[2][i], y3[i] = sums[3][i];
}

// One tile of keys, from `key` on, for queries from `position` on; `before` is the head's first
// row.
template <int width>
DEVICE void take_keys(Tile<width>& tile, const HeldRows& held, int64_t before, int key, int keys,
                      int position, Sums<width>& sums) {
    const int thread = static_cast<int>(threadIdx.x), mine = thread / 16 * 4;
    const int column = thread % 16 * 4;
    float scores[4][4] = {};
    for (int part = 0; part < width; part += 64) {
        for (int i = thread; i < kKeys * 16; i += 256) {
            const int at = i % kKeys, d = i / kKeys * 4;
            const auto v = load_held(held.keys, held.key_scales, held.form,
                                     before + key + min(at, keys - 1), width, part + d);
            tile.held[d][at] = v.x, tile.held[d + 1][at] = v.y;
            tile.held[d + 2][at] = v.z, tile.held[d + 3][at] = v.w;
        }
        block_barrier();
#pragma unroll 8
        for (int d = 0; d < 64; ++d)
            add_products(*reinterpret_cast<const float4*>(&tile.queries[part + d][mine]),
                         *reinterpret_cast<const float4*>(&tile.held[d][column]), scores);
        block_barrier();
    }
    merge(tile, scores, key, position, mine, column, sums);
#pragma unroll
    for (int part = 0; part < width / 64; ++part) {
        for (int i = thread; i < keys * 16; i += 256)
            *reinterpret_cast<float4*>(&tile.held[i / 16][i % 16 * 4]) =
                load_held(held.values, held.value_scales, held.form, before + key + i / 16, width,
                          64 * part + i % 16 * 4);
        block_barrier();
        weigh(tile, key + keys - 1 > position, key, position, mine, column, keys, sums.y[0][part],
              sums.y[1][part], sums.y[2][part], sums.y[3][part]);
        block_barrier();
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
    const int count = min(kQueries, rows - first), position = start + first;
    const int64_t before = int64_t{head / (heads / kv_heads)} * held.context;
    for (int i = thread; i < kQueries * width / 4; i += 256) {
        const int query = i % kQueries, d = i / kQueries * 4;
        const int64_t row = int64_t{first + min(query, count - 1)} * heads + head;
        const auto v = *reinterpret_cast<const float4*>(queries + row * width + d);
        tile.queries[d][query] = v.x, tile.queries[d + 1][query] = v.y;
        tile.queries[d + 2][query] = v.z, tile.queries[d + 3][query] = v.w;
    }
    Sums<width> sums;
#pragma unroll
    for (int r = 0; r < 4; ++r) sums.most[r] = -infinity();
    const int end = position + count;
    for (int key = 0; key < end; key += kKeys)
        take_keys(tile, held, before, key, min(kKeys, end - key), position, sums);
    const int mine = thread / 16 * 4, column = thread % 16 * 4;
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

KERNEL_TOGETHER(256, 2)
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

KERNEL_TOGETHER(256, 2)
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

KERNEL_TOGETHER(256, 2)
attend_256(const float* queries, const float* q, int gated, int start, int rows, int kv_heads,
           float* y, void* keys, void* values, float* key_scales, float* value_scales, int form,
           int context) {
    DYNAMIC_SHARED(shared);
    const HeldRows held{keys, values, key_scales, value_scales, form, context};
    attend<256>(queries, q, gated, start, rows, kv_heads, held, y, shared);
}
