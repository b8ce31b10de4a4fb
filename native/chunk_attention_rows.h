// Attention of several tokens: the part of decode_attention.h that includes it, with what that has.
//
// A row is one head's query of one token; the rows of a unit are its tokens', the heads of the
// group side by side. Queries lie in tiles of kTile rows, keys of a block transposed in panels of
// kSpan keys, values in panels of kSpan floats, so that the two products are kTile by two vectors
// of sums in registers, fed from panels that the first-level cache holds.

constexpr std::size_t kTile = kLanes == 16 ? 8 : 4;
constexpr std::size_t kSpan = 2 * kLanes;
static_assert(AttendChunk::kTile % kTile == 0 && AttendChunk::kFloats % kSpan == 0);
static_assert(kContextBlock % kSpan == 0);

// One step of a transposition: the off-diagonal quarters of each square of 2 * kHalf change places.
template <int kHalf, int... kLane>
inline __attribute__((always_inline)) void exchange(Vec& a, Vec& b,
                                                    std::integer_sequence<int, kLane...>) {
    constexpr int kOther = static_cast<int>(kLanes);
    const Vec low =
        __builtin_shufflevector(a, b, (kLane & kHalf ? kLane - kHalf + kOther : kLane)...);
    b = __builtin_shufflevector(a, b, (kLane & kHalf ? kLane + kOther : kLane + kHalf)...);
    a = low;
}

template <int kHalf>
inline __attribute__((always_inline)) void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kLanes; ++i)
        if (!(i & kHalf))
            exchange<kHalf>(rows[i], rows[i + kHalf], std::make_integer_sequence<int, kLanes>());
    if constexpr (kHalf > 1) transpose<kHalf / 2>(rows);
}

// Asks for memory ahead of its use; what lies beyond an array is asked for in vain.
inline void fetch(const void* from, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(static_cast<const unsigned char*>(from) + i);
}

constexpr std::size_t kAhead = 4;  // rows: their loads are too short for the processor to foresee

// A unit's place and its scratch.
struct Unit {
    std::size_t head, begin, end;  // tokens of the chunk
    std::size_t rows;              // those of the tokens, and
    std::size_t tiled;             // with the zeros that fill the last tile
    float* queries;                // (tiles, pieces of dim, kTile, kLanes)
    float *results, *scores;       // (rows, padded), (rows, block)
    float *most, *total, *factor;  // (rows)
    float *keys, *values;          // (panels, dim, kSpan), (panels, block, kSpan)
};

Unit unit_of(const AttendChunk& c, std::size_t number, float* scratch) {
    const std::size_t stretch = c.first.position / c.together + number % c.stretches();
    const std::size_t start = c.first.position, from = stretch * c.together;
    Unit u;
    u.head = number / c.stretches();
    u.begin = from > start ? from - start : 0;
    u.end = least(from + c.together - start, c.tokens);
    u.rows = (u.end - u.begin) * c.first.group();
    u.tiled = (u.rows + kTile - 1) / kTile * kTile;
    const auto part = [&](std::size_t floats) {
        float* at = scratch;
        scratch += floats;
        return at;
    };
    u.keys = part(kContextBlock * c.first.kv.dim);
    u.values = part(kContextBlock * c.padded());
    u.queries = part(c.rows() * c.padded());
    u.results = part(c.rows() * c.padded());
    u.scores = part(c.rows() * kContextBlock);
    u.most = part(c.rows());
    u.total = part(c.rows());
    u.factor = part(c.rows());
    return u;
}

// Queries in tiles; nothing attended yet.
void begin_unit(const AttendChunk& c, const Unit& u) {
    const std::size_t dim = c.first.kv.dim, group = c.first.group(), padded = c.padded();
    const float root = 1.0F / __builtin_sqrtf(static_cast<float>(dim));
    for (std::size_t row = 0; row < u.tiled; ++row) {
        float* turned = u.results + row * padded;
        if (row < u.rows) {
            const AttendStep s = c.at(u.begin + row / group);
            const std::size_t h = u.head * group + row % group;
            const std::size_t width = dim * (s.gated ? 2 : 1);
            fetch(s.q + (h + kAhead) * width, dim * 4);
            turn(s, s.q + h * width, s.q_norm, root, turned);
        } else {
            for (std::size_t i = 0; i < dim; ++i) turned[i] = 0;
        }
        float* into = u.queries + row / kTile * kTile * padded + row % kTile * kLanes;
        for (std::size_t i = 0; i < dim; i += kLanes)
            store(into + i * kTile, load(turned + i, dim - i));
        for (std::size_t i = 0; i < padded; i += kLanes) store(turned + i, Vec{});
        u.most[row] = -__builtin_inff();
        u.total[row] = 0;
    }
}

template <KvKind kind>
inline __attribute__((always_inline)) Vec held_at(const unsigned char* rows, const float* scales,
                                                  std::size_t t, std::size_t i, std::size_t dim) {
    const Vec v = Held<kind>::load_at(rows + t * dim * Held<kind>::kBytes, i, dim - i);
    return kind == KvKind::int8 ? v * splat(scales[t]) : v;
}

// `count` keys in panels; the last is filled with zeros.
template <KvKind kind>
void pack_keys(const unsigned char* rows, const float* scales, std::size_t count, std::size_t dim,
               float* into) {
    for (std::size_t t = 0; t < (count + kSpan - 1) / kSpan * kSpan; t += kLanes) {
        float* panel = into + t / kSpan * kSpan * dim + t % kSpan;
        fetch(rows + (t + kLanes) * dim * Held<kind>::kBytes, kLanes * dim * Held<kind>::kBytes);
        for (std::size_t i = 0; i < dim; i += kLanes) {
            Vec square[kLanes];
            for (std::size_t j = 0; j < kLanes; ++j)
                square[j] = t + j < count ? held_at<kind>(rows, scales, t + j, i, dim) : Vec{};
            transpose<static_cast<int>(kLanes / 2)>(square);
            for (std::size_t j = 0; j < least(kLanes, dim - i); ++j)
                store(panel + (i + j) * kSpan, square[j]);
        }
    }
}

template <KvKind kind>
void pack_values(const unsigned char* rows, const float* scales, std::size_t count, std::size_t dim,
                 float* into) {
    for (std::size_t t = 0; t < count; ++t) {
        fetch(rows + (t + 2 * kAhead) * dim * Held<kind>::kBytes, dim * Held<kind>::kBytes);
        for (std::size_t i = 0; i < (dim + kSpan - 1) / kSpan * kSpan; i += kLanes) {
            float* panel = into + i / kSpan * kSpan * kContextBlock;
            store(panel + t * kSpan + i % kSpan,
                  i < dim ? held_at<kind>(rows, scales, t, i, dim) : Vec{});
        }
    }
}

// The scores of a tile with the keys of a panel, each one chain of sums over dim.
void score_tile(const float* queries, const float* keys, std::size_t dim, float* scores) {
    Vec sums[kTile][2] = {};
    for (std::size_t i = 0; i < dim; i += kLanes, queries += kTile * kLanes) {
        const float* end = queries + least(kLanes, dim - i);
        for (const float* query = queries; query < end; ++query, keys += kSpan) {
            const Vec first = load(keys), second = load(keys + kLanes);
#pragma GCC unroll 8
            for (std::size_t r = 0; r < kTile; ++r) {
                sums[r][0] += first * splat(query[r * kLanes]);
                sums[r][1] += second * splat(query[r * kLanes]);
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kTile; ++r) {
        store(scores + r * kContextBlock, sums[r][0]);
        store(scores + r * kContextBlock + kLanes, sums[r][1]);
    }
}

inline float largest(Vec4 v) { return larger(larger(v[0], v[2]), larger(v[1], v[3])); }

inline float largest(Vec8 v) {
    const Vec4 a = __builtin_shufflevector(v, v, 0, 1, 2, 3);
    const Vec4 b = __builtin_shufflevector(v, v, 4, 5, 6, 7);
    return largest(a > b ? a : b);
}

inline float largest(Vec16 v) {
    const Vec8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
    const Vec8 b = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return largest(a > b ? a : b);
}

// Scores of `count` keys to exp(score - most), where most is now also of these. `total` becomes
// the sum of all so far, `factor` what results so far are to shrink by.
void soften_row(float* scores, std::size_t count, float* most, float* total, float* factor) {
    const std::size_t whole = count / kLanes * kLanes;
    Vec highest = splat(*most);
    for (std::size_t t = 0; t < whole; t += kLanes) {
        const Vec v = load(scores + t);
        highest = v > highest ? v : highest;
    }
    float now = larger(largest(highest), *most);
    for (std::size_t t = whole; t < count; ++t) now = larger(scores[t], now);
    Vec all{};
    for (std::size_t t = 0; t < whole; t += kLanes) {
        const Vec e = exp_below(load(scores + t) - splat(now));
        store(scores + t, e);
        all += e;
    }
    if (whole < count) {
        const std::size_t left = count - whole;
        store(scores + whole, exp_below(load(scores + whole, left) - splat(now)), left);
        all += load(scores + whole, left);
    }
    *factor = __builtin_expf(*most - now);
    *total = *total * *factor + sum(all);
    *most = now;
}

// results = results * factor + scores times a panel of values. Row r of the tile takes the first
// seen[r] keys, which do not become fewer from row to row; each result is one chain of sums.
void weigh_tile(const float* scores, const float* values, const std::size_t* seen,
                const float* factor, std::size_t padded, float* results) {
    Vec sums[kTile][2] = {};
    const float* value = values;
    for (std::size_t r = 0; r < kTile; ++r) {  // what the next lines wait for at their end
        __builtin_prefetch(results + r * padded, 1);
        __builtin_prefetch(results + r * padded + kLanes, 1);
    }
    for (std::size_t t = 0; t < seen[0]; ++t, value += kSpan) {
        __builtin_prefetch(scores + (kContextBlock + t) * kTile);  // of the next tile
        const Vec first = load(value), second = load(value + kLanes);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kTile; ++r) {
            const Vec weight = splat(scores[r * kContextBlock + t]);
            sums[r][0] += first * weight;
            sums[r][1] += second * weight;
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kTile; ++r) {
        for (std::size_t t = seen[0]; t < seen[r]; ++t) {
            const Vec weight = splat(scores[r * kContextBlock + t]);
            sums[r][0] += load(values + t * kSpan) * weight;
            sums[r][1] += load(values + t * kSpan + kLanes) * weight;
        }
        float* into = results + r * padded;
        store(into, load(into) * splat(factor[r]) + sums[r][0]);
        store(into + kLanes, load(into + kLanes) * splat(factor[r]) + sums[r][1]);
    }
}

// One block of keys, from position `skipped` on, for all rows of a unit.
template <KvKind kind>
void attend_block(const AttendChunk& c, const Unit& u, std::size_t skipped) {
    const KeyValues& kv = c.first.kv;
    const std::size_t dim = kv.dim, group = c.first.group(), at = u.head * kv.context + skipped;
    // Keys that a row sees; a row beyond the last stands for the last.
    const auto seen = [&](std::size_t row) {
        const std::size_t token = u.begin + least(row, u.rows - 1) / group;
        return least(c.first.position + token + 1 - skipped, kContextBlock);
    };
    const auto held = [&](void* rows) {
        return static_cast<const unsigned char*>(rows) + at * dim * Held<kind>::kBytes;
    };
    const bool scaled = kind == KvKind::int8;
    const std::size_t count = seen(u.rows);
    pack_keys<kind>(held(kv.keys), scaled ? kv.key_scales + at : nullptr, count, dim, u.keys);
    pack_values<kind>(held(kv.values), scaled ? kv.value_scales + at : nullptr, count, dim,
                      u.values);
    for (std::size_t t = 0; t < count; t += kSpan)
        for (std::size_t row = 0; row < u.tiled; row += kTile)
            if (t < seen(row + kTile - 1))
                score_tile(u.queries + row * c.padded(), u.keys + t * dim, dim,
                           u.scores + row * kContextBlock + t);
    for (std::size_t row = 0; row < u.tiled; ++row)
        soften_row(u.scores + row * kContextBlock, seen(row), u.most + row, u.total + row,
                   u.factor + row);
    for (std::size_t i = 0; i < dim; i += kSpan)
        for (std::size_t row = 0; row < u.tiled; row += kTile) {
            std::size_t edges[kTile];
            for (std::size_t r = 0; r < kTile; ++r) edges[r] = seen(row + r);
            weigh_tile(u.scores + row * kContextBlock, u.values + i * kContextBlock, edges,
                       u.factor + row, c.padded(), u.results + row * c.padded() + i);
        }
}

// y * sigmoid(gate), by e^-|gate|, which does not overflow.
inline Vec gated(Vec y, Vec gate) {
    const Vec e = exp_below(gate < Vec{} ? gate : -gate), one = splat(1.0F);
    return y * (gate < Vec{} ? e : one) / (one + e);
}

// Results over their sums, gated, to their places.
void end_unit(const AttendChunk& c, const Unit& u) {
    const std::size_t dim = c.first.kv.dim, group = c.first.group();
    for (std::size_t row = 0; row < u.rows; ++row) {
        const AttendStep s = c.at(u.begin + row / group);
        const std::size_t h = u.head * group + row % group;
        const float *from = u.results + row * c.padded(), *gate = s.q + (2 * h + 1) * dim;
        const Vec inverse = splat(1.0F / u.total[row]);
        fetch(s.y + (h + kAhead) * dim, dim * 4);
        if (s.gated) fetch(gate + 2 * kAhead * dim, dim * 4);
        for (std::size_t i = 0; i < dim; i += kLanes) {
            const Vec y = load(from + i) * inverse;
            store(s.y + h * dim + i, s.gated ? gated(y, load(gate + i, dim - i)) : y, dim - i);
        }
    }
}

template <KvKind kind>
void attend_unit(const AttendChunk& c, const Unit& u) {
    const std::size_t last = c.first.position + u.end - 1;
    begin_unit(c, u);
    for (std::size_t skipped = 0; skipped <= last; skipped += kContextBlock)
        attend_block<kind>(c, u, skipped);
    end_unit(c, u);
}

void append_chunk(const AttendChunk& c, std::size_t begin, std::size_t end, float* scratch) {
    for (std::size_t t = begin; t < end; ++t) hold_token(c.at(t), scratch);
}

void attend_chunk(const AttendChunk& c, std::size_t number, float* scratch) {
    const Unit u = unit_of(c, number, scratch);
    switch (c.first.kv.kind) {
        case KvKind::f16: return attend_unit<KvKind::f16>(c, u);
        case KvKind::bf16: return attend_unit<KvKind::bf16>(c, u);
        case KvKind::int8: return attend_unit<KvKind::int8>(c, u);
        default: return attend_unit<KvKind::f32>(c, u);
    }
}
