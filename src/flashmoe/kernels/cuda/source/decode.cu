// One token: embedding, norms, products, and the sum that is the residual stream.
//
// Every kernel's twin is in kernels/reference.py. Vectors are float32; `fixed` arrays as fixed.cuh
// says. Plain weights want columns in multiples of 32 too.

#include "normed.cuh"

constexpr int kRows = 2;   // rows a warp of project() multiplies at once
constexpr int kWarps = 4;  // warps of its blocks

// x = row `given[0]` of the embedding, and the step's own numbers taken over: `given` is the host's
// memory, `input` (token, position, step, slots taken and offered) the device's. Blocks of 256
// threads, one an element.
KERNEL(256)
lookup(GIVEN Matrix m, const int* __restrict__ given, int* __restrict__ input,
       float* __restrict__ x) {
    if (blockIdx.x == 0 && threadIdx.x < 5) input[threadIdx.x] = given[threadIdx.x];
    const int column = static_cast<int>(blockIdx.x * 256 + threadIdx.x);
    if (column >= m.columns) return;
    x[column] = weight_at(m, given[0], column);
}

// y = x / sqrt(mean(x^2) + eps) * weight, as floats and fixed. One block.
KERNEL(1024)
rms_norm(const float* __restrict__ x, const float* __restrict__ weight, float eps, int columns,
         float* __restrict__ y, uint8_t* __restrict__ fixed) {
    __shared__ float room[32];
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    float squares = 0.0F;
    for (int i = thread; i < columns; i += threads) squares = fmaf(x[i], x[i], squares);
    const float mean = block_sum(squares, room) / static_cast<float>(columns);
    const float factor = 1.0F / sqrtf(mean + eps);
    for (int i = thread; i < columns; i += threads) {
        const float value = x[i] * factor * weight[i];
        y[i] = value;
        fix(value, i / 32, Fixed{fixed, columns});
    }
}

// x (columns) as fixed, a warp a chunk.
KERNEL(128) fix_vector(const float* __restrict__ x, int columns, uint8_t* __restrict__ fixed) {
    const int chunk = static_cast<int>(blockIdx.x * 128 + threadIdx.x) / 32;
    if (chunk >= columns / 32) return;
    fix(x[32 * chunk + static_cast<int>(threadIdx.x) % 32], chunk, Fixed{fixed, columns});
}

// Which matrix of several has block `block`, whose blocks begin at `first`; `before` is how many
// rows come before its own.
DEVICE int matrix_at(const Matrices& given, int block, int& before) {
    int which = 0;
    before = 0;
    while (which + 1 < given.count && block >= given.all[which + 1].first)
        before += given.all[which++].rows;
    return which;
}

// `count` rows of a matrix from `row` on, as far as there are, times x; to y + row, with `residual`
// added where there is one. By a warp.
template <int count, class X>
DEVICE void multiply(const Matrix& m, const X& x, int row, const float* residual, float* y) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int rows[count];
#pragma unroll
    for (int r = 0; r < count; ++r) rows[r] = min(row + r, m.rows - 1);
    float sums[count];
    row_products(m, x, rows, sums);
    float mine = sums[0];
#pragma unroll
    for (int r = 1; r < count; ++r) mine = lane == r ? sums[r] : mine;
    if (lane < count && row + lane < m.rows)
        y[row + lane] = residual == nullptr ? mine : residual[row + lane] + mine;
}

// The products of the same x with several matrices, one after the other in y; `first` of each is
// its first block. A block multiplies kWarps * kRows rows of one matrix. `residual`, where there is
// one, is added.
KERNEL(128)
project(GIVEN Matrices given, const float* __restrict__ x, const uint8_t* __restrict__ fixed,
        const float* residual, float* y) {
    int before;
    const Matrix m = given.all[matrix_at(given, static_cast<int>(blockIdx.x), before)];
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int row = ((static_cast<int>(blockIdx.x) - m.first) * kWarps + warp) * kRows;
    if (row >= m.rows) return;
    const Activations in{x, Fixed{const_cast<uint8_t*>(fixed), m.columns}};
    multiply<kRows>(m, in, row, residual == nullptr ? nullptr : residual + before, y + before);
}

// Rows row to row + most of a matrix on their way, by a warp.
DEVICE void fetch_rows(const Matrix& m, int row, int most) {
    const int64_t count = min(most, m.rows - row);
    if (count <= 0) return;
    if (m.bits == 0) {
        const int64_t bytes = int64_t{m.columns} * (m.type == kF32 ? 4 : 2);
        fetch_ahead(m.weight + row * bytes, count * bytes);
        return;
    }
    const int64_t codes = int64_t{m.columns} / 32 * 4 * m.bits;
    const int64_t numbers = int64_t{m.columns} / m.group * (m.type == kF32 ? 4 : 2);
    fetch_ahead(m.weight + row * codes, count * codes);
    fetch_ahead(m.scales + row * numbers, count * numbers);
    fetch_ahead(m.biases + row * numbers, count * numbers);
}

// The same of the norm of x, which each block makes for itself while its first weights are on their
// way, and the first one also leaves as floats and fixed where those are given. A part is `count`
// rows of each warp; `first` counts parts, and a block takes every so many-th of them: no more
// blocks than there is room for at once need make a norm. `memory` as Normed wants it.
template <int count>
DEVICE void project_normed(const Matrices& given, int parts, const float* x, const float* weight,
                           float eps, float* floats, uint8_t* fixed, float* y,
                           unsigned char* memory) {
    constexpr int kPart = kNormThreads / 32 * count;
    __shared__ float room[32];
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const Normed normed{memory, given.all[0].columns / 32};
    float factor = 0.0F;
    int layout = -1;
    for (int part = static_cast<int>(blockIdx.x); part < parts;
         part += static_cast<int>(gridDim.x)) {
        int before;
        const Matrix m = given.all[matrix_at(given, part, before)];
        const int row = (part - m.first) * kPart + warp * count;
        if (layout < 0) {
            fetch_rows(m, row, count);
            factor = weigh(x, weight, eps, normed, room);
        }
        if (layout != layout_of(m.bits)) {
            block_barrier();  // nobody reads any more what lay there in another way
            const bool writes = part == 0;
            lay_out(factor, m.bits, normed, {writes ? floats : nullptr, writes ? fixed : nullptr});
            layout = layout_of(m.bits);
        }
        fetch_rows(m, row + static_cast<int>(gridDim.x) * kPart, count);
        if (row < m.rows) multiply<count>(m, normed, row, nullptr, y + before);
    }
}

KERNEL_TOGETHER(kNormThreads, 3)
project_normed_4(GIVEN Matrices given, int parts, const float* __restrict__ x,
                 const float* __restrict__ weight, float eps, float* __restrict__ floats,
                 uint8_t* __restrict__ fixed, float* __restrict__ y) {
    DYNAMIC_SHARED(memory);
    project_normed<4>(given, parts, x, weight, eps, floats, fixed, y, memory);
}

KERNEL_TOGETHER(kNormThreads, 3)
project_normed_1(GIVEN Matrices given, int parts, const float* __restrict__ x,
                 const float* __restrict__ weight, float eps, float* __restrict__ floats,
                 uint8_t* __restrict__ fixed, float* __restrict__ y) {
    DYNAMIC_SHARED(memory);
    project_normed<1>(given, parts, x, weight, eps, floats, fixed, y, memory);
}
