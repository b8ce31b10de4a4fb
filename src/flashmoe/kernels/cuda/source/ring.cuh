// Rows of weights on their way from global to shared memory, in a warp's own ring of stages there.
//
// Owns what lies where in a stage, and when it is read and written over. Rows lie one after the
// other, and so do their scales: what a warp multiplies at once is one span of each, or, of long
// rows, a piece of every row. Bytes under way take no registers, so that a processor can have most
// of its shared memory under way.

#pragma once

#include "ready.cuh"

constexpr int kMostStages = 4, kMostWarps = 16;

// As rings.py says it.
struct Staging {
    int chunks;  // of a row at once: all of them, or a multiple of 32
    int stages;  // of a warp
    int bytes;   // of a stage
    int unused;
};

// A span takes so much of a stage, as it may begin between two multiples of 16.
DEVICE int span_room(int bytes) { return ((bytes + 15) & ~15) + 16; }

// Some rows of a matrix, and of these some chunks.
struct Cut {
    int row, rows;
    int first, chunks;

    DEVICE bool whole(const Matrix& m) const { return chunks == m.columns / 32; }
};

// One of a matrix's arrays on its way to `to`, where it has room for `most` rows; `each` bytes a
// chunk of a row, or of two or four as `spread` says. Without an arrival only where it will be. The
// bytes that are under way are added to `total`.
DEVICE const uint8_t* lay_array(const uint8_t* array, const Matrix& m, const Cut& cut, int most,
                                int each, int spread, unsigned char*& to, Arrival* arrival,
                                int& total) {
    const int row_bytes = (m.columns / 32 >> spread) * each, bytes = (cut.chunks >> spread) * each;
    const uint8_t* from = array + int64_t{cut.row} * row_bytes + (cut.first >> spread) * each;
    const int skip = static_cast<int>(reinterpret_cast<uint64_t>(from) % 16);
    unsigned char* place = to;
    to += span_room(most * bytes);
    if (arrival != nullptr && cut.whole(m)) {
        const int count = (skip + cut.rows * bytes + 15) & ~15;
        bulk_copy(place, from - skip, count, *arrival);
        total += count;
    } else if (arrival != nullptr) {
#pragma unroll 1
        for (int r = 0; r < cut.rows; ++r)
            bulk_copy(place + r * bytes, from + int64_t{r} * row_bytes, bytes, *arrival);
        total += cut.rows * bytes;
    }
    return place + skip;
}

// A cut as a matrix of its own in a stage, of which `to` is the place, and then the place behind
// it. With an arrival it is brought there.
DEVICE Matrix lay_cut(const Matrix& m, const Cut& cut, int most, unsigned char*& to,
                      Arrival* arrival, int& total) {
    Matrix laid = m;
    laid.rows = cut.rows, laid.columns = 32 * cut.chunks;
    const int number = m.type == kF32 ? 4 : 2;
    const int each = m.bits ? 4 * m.bits : 32 * number;
    laid.weight = lay_array(m.weight, m, cut, most, each, 0, to, arrival, total);
    if (m.bits) {
        // Of two chunks or four that share a scale; or of one, where a group is of 32.
        const int spread = m.group / 64;
        laid.scales = lay_array(m.scales, m, cut, most, number, spread, to, arrival, total);
        laid.biases = lay_array(m.biases, m, cut, most, number, spread, to, arrival, total);
    }
    return laid;
}

// Activations from some chunk on.
struct From {
    const Ready& x;
    int first;

    template <int bits>
    DEVICE void load(int chunk, FixedChunk& out) const {
        x.load<bits>(first + chunk, out);
    }
    DEVICE float4 load_floats(int chunk, int eighth) const {
        return x.load_floats(first + chunk, eighth);
    }
};

// Which matrix of several has part `part`, whose parts begin at `first`; `before` is how many rows
// come before its own.
DEVICE int matrix_at(const Matrices& given, int part, int& before) {
    int which = 0;
    before = 0;
    while (which + 1 < given.count && part >= given.all[which + 1].first)
        before += given.all[which++].rows;
    return which;
}

// A warp's stages, one after the other: what is asked for goes to the next one, in the order in
// which it is awaited.
struct Ring {
    const Staging& how;
    unsigned char* const memory;
    Arrival* const arrivals;
    int asking = 0, here = 0, turn = 0;

    DEVICE Ring(const Staging& staging, unsigned char* rings,
                Arrival (&all)[kMostWarps][kMostStages])
        : how(staging),
          memory(rings + warp() * staging.stages * staging.bytes),
          arrivals(all[warp()]) {
        arrivals_ready(arrivals, how.stages);
    }
    DEVICE static int warp() { return static_cast<int>(threadIdx.x) / 32; }

    // `lay` lays cuts in a stage, as lay_cut wants it.
    template <class Lay>
    DEVICE void ask(Lay lay) {
        unsigned char* to = memory + asking * how.bytes;
        int total = 0;
        lay(to, &arrivals[asking], total);
        bulk_end(arrivals[asking], total);
        if (++asking == how.stages) asking = 0;
    }
    // The stage that was asked for the longest ago, whose bytes have come.
    DEVICE unsigned char* await() {
        bulk_await(arrivals[here], turn, how.stages - 1);
        return memory + here * how.bytes;
    }
    // Nobody reads there any more: one more may be asked for, or bulk_none() said.
    DEVICE void pass() {
        warp_barrier();
        if (++here == how.stages) here = 0, ++turn;
    }
};

// A cut's products with x, added to a lane's sums: those of four bits all at once, of any other two
// rows and then the next, for which there are registers.
template <int count>
DEVICE void add_cut(const Matrix& laid, const From& x, const int (&rows)[count],
                    float (&sums)[count]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (laid.bits == 4 && laid.type == kBF16) {
        affine_chunks<4, kBF16, Shared>(laid, x, lane, 32, rows, sums);
        return;
    }
#pragma unroll 1
    for (int r = 0; r < count; r += 2) {
        int two[2] = {rows[0], rows[1]};
        float of_two[2] = {};
#pragma unroll
        for (int k = 2; k < count; ++k)
            if (k / 2 * 2 == r) two[k % 2] = rows[k];
        add_chunks<Shared>(laid, x, lane, 32, two, of_two);
#pragma unroll
        for (int k = 0; k < count; ++k)
            if (k / 2 * 2 == r) sums[k] += of_two[k % 2];
    }
}

// The products of a block with several matrices, one after the other in y. A part is `count` rows
// of each warp; `first` of a matrix counts parts, and a block takes every so many-th of them.
template <int count>
struct RingProducts {
    const Matrices& given;
    const int parts, pieces;
    Ring ring;
    int part, piece = 0;  // what is asked for next

    DEVICE RingProducts(const Matrices& matrices, int all_parts, const Staging& how,
                        unsigned char* rings, Arrival (&all)[kMostWarps][kMostStages])
        : given(matrices),
          parts(all_parts),
          pieces((matrices.all[0].columns / 32 + how.chunks - 1) / how.chunks),
          ring(how, rings, all),
          part(static_cast<int>(blockIdx.x)) {
        // As much as there is room for, before anything is known of the activations.
#pragma unroll 1
        for (int s = 0; s < how.stages; ++s) ask();
    }

    // The cut of a part's piece that is this warp's.
    DEVICE Cut cut(const Matrix& m, int of_part, int of_piece) const {
        const int each = static_cast<int>(blockDim.x) / 32 * count;
        const int row = (of_part - m.first) * each + Ring::warp() * count;
        const int first = of_piece * ring.how.chunks;
        const int chunks = min(ring.how.chunks, m.columns / 32 - first);
        return {row, max(min(count, m.rows - row), 0), first, chunks};
    }

    // Asks for the next piece.
    DEVICE void ask() {
        if (part >= parts) {
            bulk_none();
            return;
        }
        int before;
        const Matrix m = given.all[matrix_at(given, part, before)];
        const Cut wanted = cut(m, part, piece);
        ring.ask([&](unsigned char*& to, Arrival* arrival, int& total) {
            if (wanted.rows) lay_cut(m, wanted, count, to, arrival, total);
        });
        if (++piece == pieces) piece = 0, part += static_cast<int>(gridDim.x);
    }

    // y, with `residual` added where there is one. `prepare(bits, part)` gives the activations for
    // weights of so many bits; by the whole block, before each part.
    template <class Prepare>
    DEVICE void run(const float* residual, float* y, Prepare prepare) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        for (int p = static_cast<int>(blockIdx.x); p < parts; p += static_cast<int>(gridDim.x)) {
            int before;
            const Matrix m = given.all[matrix_at(given, p, before)];
            const Ready x = prepare(m.bits, p);
            float sums[count] = {};
            Cut mine{};
            for (int k = 0; k < pieces; ++k) {
                mine = cut(m, p, k);
                unsigned char* at = ring.await();
                if (mine.rows) {
                    int none = 0, rows[count];
                    const Matrix laid = lay_cut(m, mine, count, at, nullptr, none);
#pragma unroll
                    for (int r = 0; r < count; ++r) rows[r] = min(r, laid.rows - 1);
                    add_cut(laid, From{x, mine.first}, rows, sums);
                }
                ring.pass();
                ask();
            }
#pragma unroll
            for (int r = 0; r < count; ++r) sums[r] = warp_sum(sums[r]);
            float out = sums[0];
#pragma unroll
            for (int r = 1; r < count; ++r) out = lane == r ? sums[r] : out;
            const int row = before + mine.row + lane;
            if (lane < mine.rows) y[row] = residual == nullptr ? out : residual[row] + out;
        }
    }
};
