// One token: embedding, norms, products, and the sum that is the residual stream.
//
// Every kernel's twin is in kernels/reference.py. Vectors are float32; `fixed` arrays as fixed.cuh
// says. Plain weights want columns in multiples of 32 too.

#include "normed.cuh"
#include "ring.cuh"

// x = row `given[0]` of the embedding, and the step's own numbers taken over: `given` is the host's
// memory, `input` (token, position, step, slots taken, offered, and offered at the choice before)
// the device's. Blocks of 256 threads, one an element.
KERNEL(256)
lookup(GIVEN Matrix m, const int* __restrict__ given, int* __restrict__ input,
       float* __restrict__ x) {
    if (blockIdx.x == 0 && threadIdx.x < 6) input[threadIdx.x] = given[threadIdx.x];
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

// The products of the same x with several matrices, one after the other in y, by `count` rows of
// each warp at once. `residual`, where there is one, is added. The block's shared memory: 4 bytes
// an input for x, then the rings.
template <int count>
DEVICE void project(const Matrices& given, const Staging& how, int parts, const float* x,
                    const uint8_t* fixed, const float* residual, float* y, unsigned char* memory) {
    __shared__ Arrival arrivals[kMostWarps][kMostStages];
    const int columns = given.all[0].columns;
    RingProducts<count> products(given, parts, how, memory + 4 * columns, arrivals);
    const Activations in{x, Fixed{const_cast<uint8_t*>(fixed), columns}};
    const Ready ready{memory, columns / 32};
    int layout = -1;
    products.run(residual, y, [&](int bits, int) {
        if (layout != layout_of(bits)) {
            block_barrier();  // nobody reads any more what lay there in another way
            layout = layout_of(bits);
            ready.take_over(in, layout);
        }
        return ready;
    });
}

// The same of the norm of x, which each block makes for itself while its first weights are on their
// way, and the first one also leaves as floats and fixed where those are given. 8 bytes an input.
template <int count>
DEVICE void project_normed(const Matrices& given, const Staging& how, int parts, const float* x,
                           const float* weight, float eps, float* floats, uint8_t* fixed, float* y,
                           unsigned char* memory) {
    __shared__ Arrival arrivals[kMostWarps][kMostStages];
    __shared__ float room[32];
    const int columns = given.all[0].columns;
    RingProducts<count> products(given, parts, how, memory + 8 * columns, arrivals);
    const Ready ready{memory, columns / 32};
    auto* weighted = reinterpret_cast<float4*>(memory + 4 * columns);
    const float factor = weigh(x, weight, eps, columns / 4, weighted, room);
    int layout = -1;
    products.run(nullptr, y, [&](int bits, int part) {
        if (layout != layout_of(bits)) {
            block_barrier();
            layout = layout_of(bits);
            const bool writes = part == 0;
            lay_out(weighted, factor, layout, ready,
                    {writes ? floats : nullptr, writes ? fixed : nullptr});
        }
        return ready;
    });
}

// Two blocks fit a processor, where their shared memory does.
KERNEL_TOGETHER(32 * kMostWarps, 2)
project_2(GIVEN Matrices given, GIVEN Staging how, int parts, const float* x, const uint8_t* fixed,
          const float* residual, float* y) {
    DYNAMIC_SHARED(memory);
    project<2>(given, how, parts, x, fixed, residual, y, memory);
}

KERNEL_TOGETHER(32 * kMostWarps, 2)
project_4(GIVEN Matrices given, GIVEN Staging how, int parts, const float* x, const uint8_t* fixed,
          const float* residual, float* y) {
    DYNAMIC_SHARED(memory);
    project<4>(given, how, parts, x, fixed, residual, y, memory);
}

KERNEL_TOGETHER(32 * kMostWarps, 2)
project_normed_2(GIVEN Matrices given, GIVEN Staging how, int parts, const float* x,
                 const float* __restrict__ weight, float eps, float* floats, uint8_t* fixed,
                 float* y) {
    DYNAMIC_SHARED(memory);
    project_normed<2>(given, how, parts, x, weight, eps, floats, fixed, y, memory);
}

KERNEL_TOGETHER(32 * kMostWarps, 2)
project_normed_4(GIVEN Matrices given, GIVEN Staging how, int parts, const float* x,
                 const float* __restrict__ weight, float eps, float* floats, uint8_t* fixed,
                 float* y) {
    DYNAMIC_SHARED(memory);
    project_normed<4>(given, how, parts, x, weight, eps, floats, fixed, y, memory);
}
