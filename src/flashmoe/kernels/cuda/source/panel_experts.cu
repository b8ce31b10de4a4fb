// The experts of a chunk: many at once, each for the rows that chose it.
//
// A *place* is a row of activations for one expert; the places of an expert follow one another. A
// launch multiplies one matrix of every expert, or gate and up, in tiles of up to 64 places. Twin:
// experts of kernels/reference.py; expert by expert, the same bits as resident matrices.

#include "panel_tile.cuh"
#include "plain_tile.cuh"

// As descriptors.py writes it: matrices have offsets into a record.
struct Experts {
    const uint8_t* arena;
    int64_t slot_bytes;
    Matrix matrices[3];  // gate, up, down
    Matrix shared[3];    // not looked at
};

// Places from `first` on, all of the expert in `slot`.
struct Tile {
    int slot, first, count;
};

// The matrix that the block multiplies, of the expert in `slot`: gate (0), up or down, and in the
// second half of a launch of two, the next; and where its outputs begin.
DEVICE Matrix matrix_of(const Experts& layer, int slot, int of, int tile_outputs, int& first) {
    const int blocks = (layer.matrices[of].rows + tile_outputs - 1) / tile_outputs;
    const int block = static_cast<int>(blockIdx.y);
    first = block % blocks * tile_outputs;
    return layer.matrices[of + block / blocks].at(layer.arena + int64_t{slot} * layer.slot_bytes);
}

// Blocks of a tile (x) by 128 outputs (y), of the second matrix after those of the first. Place p
// takes row chosen[p] of x, or p; results are rows of y0 or y1 by place.
template <int group>
DEVICE void expert_product(const Experts& layer, const Tile* tiles, int of, const uint8_t* planes,
                           int rows, const int* chosen, float* y0, float* y1,
                           unsigned char* shared) {
    float total[2][4][4] = {};
    {
        const Tile tile = tiles[blockIdx.x];
        int first;
        const Matrix m = matrix_of(layer, tile.slot, of, kTileOutputs, first);
        const Planes x{const_cast<uint8_t*>(planes), rows, m.columns, group};
        multiply_tile<group>(m, first, x, copied_row(chosen, tile.first, tile.count), shared,
                             total);
    }
    const Tile tile = afresh(tiles)[blockIdx.x];
    const Matrix* m = layer.matrices + of;
    const int blocks = (m->rows + kTileOutputs - 1) / kTileOutputs;
    const int block = static_cast<int>(blockIdx.y);
    put_tile(total, block % blocks * kTileOutputs, m->rows, tile.first, tile.count, nullptr,
             block < blocks ? y0 : y1);
}

KERNEL_TOGETHER(256, 2)
experts_32(GIVEN Experts layer, const Tile* __restrict__ tiles, int of,
           const uint8_t* __restrict__ planes, int rows, const int* __restrict__ chosen, float* y0,
           float* y1) {
    DYNAMIC_SHARED(shared);
    expert_product<32>(layer, tiles, of, planes, rows, chosen, y0, y1, shared);
}

KERNEL_TOGETHER(256, 2)
experts_64(GIVEN Experts layer, const Tile* __restrict__ tiles, int of,
           const uint8_t* __restrict__ planes, int rows, const int* __restrict__ chosen, float* y0,
           float* y1) {
    DYNAMIC_SHARED(shared);
    expert_product<64>(layer, tiles, of, planes, rows, chosen, y0, y1, shared);
}

KERNEL(256)
experts_128(GIVEN Experts layer, const Tile* __restrict__ tiles, int of,
            const uint8_t* __restrict__ planes, int rows, const int* __restrict__ chosen, float* y0,
            float* y1) {
    DYNAMIC_SHARED(shared);
    expert_product<128>(layer, tiles, of, planes, rows, chosen, y0, y1, shared);
}

// Blocks of a tile by 64 outputs.
KERNEL(256)
experts_plain(GIVEN Experts layer, const Tile* __restrict__ tiles, int of,
              const float* __restrict__ x, int /*rows*/, const int* __restrict__ chosen, float* y0,
              float* y1) {
    __shared__ PlainStep step;
    const Tile tile = tiles[blockIdx.x];
    int first;
    const Matrix m = matrix_of(layer, tile.slot, of, kPlainTile, first);
    plain_tile(m, first, x, chosen, tile.first, tile.count, nullptr,
               static_cast<int>(blockIdx.y) * kPlainTile < m.rows ? y0 : y1, step);
}

// A use of an expert by a row: its place, and where its weight stands.
struct Use {
    int place, weight;
};

// y[row] += weight * out[place - first] for those of the row's uses, of which there are top_k, that
// lie in the `places` places from `first` on, in the order of the uses. Blocks of a row (x) by 1024
// columns (y).
KERNEL(256)
combine(const Use* __restrict__ uses, int top_k, int first, int places,
        const float* __restrict__ weights, const float* __restrict__ out, int columns, float* y) {
    const int row = static_cast<int>(blockIdx.x);
    const int column = static_cast<int>(blockIdx.y * 1024 + threadIdx.x * 4);
    if (column >= columns) return;
    auto* into = reinterpret_cast<float4*>(y + int64_t{row} * columns + column);
    float4 total;
    bool met = false;  // by most rows no expert of a small batch is
    for (int i = 0; i < top_k; ++i) {
        const Use use = uses[int64_t{row} * top_k + i];
        const int place = use.place - first;
        if (place < 0 || place >= places) continue;
        if (!met) total = *into, met = true;
        const float weight = weights[use.weight];
        const auto v = *reinterpret_cast<const float4*>(out + int64_t{place} * columns + column);
        total.x = fmaf(weight, v.x, total.x), total.y = fmaf(weight, v.y, total.y);
        total.z = fmaf(weight, v.z, total.z), total.w = fmaf(weight, v.w, total.w);
    }
    if (met) *into = total;
}
