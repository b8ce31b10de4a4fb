// One token's feed-forward part: the router's choice, the chosen experts and the shared one.
//
// An expert lies in a slot of an arena; which slot is the host's decision and never shows in the
// result. Twins: route, experts and swiglu of kernels/reference.py.

#include "matrix.cuh"
#include "router.cuh"

constexpr int kUpWarps = 8, kUpRows = 4;
constexpr int kChunkRows = kUpWarps * kUpRows;  // one chunk of the activations between
constexpr int kDownWarps = 10, kDownRows = 8;

// As descriptors.py writes it: one layer's experts. Matrices have offsets into a record.
struct Experts {
    const uint8_t* arena;
    int64_t slot_bytes;
    Matrix gate, up, down;
    Matrix shared_gate, shared_up, shared_down;  // addresses; rows 0 where there is none
};

// Where device and host meet once a layer and token, in the host's memory (mailbox.py).
struct Letter {
    int ids[32];    // what the router chose
    int slots[32];  // the host's answer
    int asked;      // twice the step's number, and one more where the device waits for an answer
    int answered;   // the step's number; negative: the pass is given up, any slots will do
    int unused[14];
};

// Softmax over the router's logits; the top_k ids, best first, ties to the lower, their weights,
// and where each lies. Without logits all experts are chosen, with weight 1. One warp.
//
// `table` says in which slot an expert lies, -1 for none. The host is told the ids; only where one
// of them has no slot it is waited for, and its answer are the slots of all. A letter is the host's
// memory, `input` the step's own numbers (lookup).
KERNEL(32)
route(const float* __restrict__ logits, int count, int top_k, int renormalize, const int* table,
      const int* __restrict__ input, Letter* letter, int* __restrict__ ids,
      float* __restrict__ weights, int* __restrict__ slots) {
    const int lane = static_cast<int>(threadIdx.x);
    float chosen = 1.0F;
    int number = lane;
    if (logits != nullptr) {
        choose(logits, count, top_k, renormalize, number, chosen);
    }
    const bool mine = lane < top_k;
    int slot = mine ? static_cast<const volatile int*>(table)[number] : 0;
    if (letter != nullptr) {
        const int step = input[2];
        volatile Letter* mail = letter;
        if (mine) mail->ids[lane] = number;
        __threadfence_system();
        const bool absent = warp_any(slot < 0);
        if (lane == 0) mail->asked = 2 * step + (absent ? 1 : 0);
        if (absent) {
            int answer = 0;
            while (true) {
                answer = mail->answered;
                if (answer == step || answer == -step) break;
                wait_a_moment();
            }
            __threadfence_system();
            slot = mine && answer == step ? mail->slots[lane] : 0;
        }
    }
    if (mine) ids[lane] = number, weights[lane] = chosen, slots[lane] = slot;
}

// h = silu(gate(x)) * up(x) of every chosen expert, as floats (top_k + 1, width) and fixed,
// `stride` bytes each; the shared one comes last. A block makes 32 values of one: blockIdx.y says
// of which.
KERNEL_TOGETHER(256, 2)
experts_up(GIVEN Experts layer, const int* __restrict__ slots, int top_k,
           const float* __restrict__ x, const uint8_t* __restrict__ fixed, float* __restrict__ h,
           uint8_t* __restrict__ h_fixed, int width, int stride) {
    __shared__ float made[kChunkRows];
    const int which = static_cast<int>(blockIdx.y), warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool shared = which == top_k;
    Matrix gate = shared ? layer.shared_gate : layer.gate;
    Matrix up = shared ? layer.shared_up : layer.up;
    const int first = static_cast<int>(blockIdx.x) * kChunkRows;
    if (first >= gate.rows) return;
    if (!shared) {
        const uint8_t* record = layer.arena + int64_t{slots[which]} * layer.slot_bytes;
        gate = gate.at(record);
        up = up.at(record);
    }
    int rows[kUpRows];
#pragma unroll
    for (int r = 0; r < kUpRows; ++r) rows[r] = first + warp * kUpRows + r;
    const Activations in{x, Fixed{const_cast<uint8_t*>(fixed), gate.columns}};
    float gated[kUpRows], straight[kUpRows];
    pair_products(gate, up, in, rows, gated, straight);
#pragma unroll
    for (int r = 0; r < kUpRows; ++r)
        if (lane == r) made[warp * kUpRows + r] = silu(gated[r]) * straight[r];
    block_barrier();
    if (warp == 0) {
        const float value = made[lane];
        h[which * width + first + lane] = value;
        fix(value, first / 32, Fixed{h_fixed + int64_t{which} * stride, gate.rows});
    }
}

// y = residual + sum over the chosen of weight * down(h) + sigmoid(shared_logit) * the shared one.
// A block makes kDownRows values; a warp takes one expert's part of them, or several such in turn.
// Parts are added in the order of ids, the shared one's last. Of few inputs a warp has lanes for
// several rows at once. With 10 warps two blocks fit a processor, so that all blocks of 2,048
// values are at work at once on an H100.
KERNEL_TOGETHER(32 * kDownWarps, 2)
experts_down(GIVEN Experts layer, const int* __restrict__ slots, const float* __restrict__ weights,
             int top_k, const float* __restrict__ shared_logit, const float* __restrict__ h,
             const uint8_t* __restrict__ h_fixed, int width, int stride, const float* residual,
             float* y) {
    __shared__ float parts[32][kDownRows];
    const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
    const int first = static_cast<int>(blockIdx.x) * kDownRows, last = layer.down.rows - 1;
    const int experts = top_k + (layer.shared_down.rows ? 1 : 0);
    for (int e = static_cast<int>(threadIdx.x) / 32; e < experts; e += warps) {
        const Matrix m = e == top_k
                             ? layer.shared_down
                             : layer.down.at(layer.arena + int64_t{slots[e]} * layer.slot_bytes);
        const Activations in{h + int64_t{e} * width,
                             Fixed{const_cast<uint8_t*>(h_fixed) + int64_t{e} * stride, m.columns}};
        int rows[kDownRows / 2];
        if (m.columns / 32 <= 16) {  // each half of the warp takes half of the rows
            const int half = lane / 16;
            float sums[kDownRows / 2] = {};
#pragma unroll
            for (int r = 0; r < kDownRows / 2; ++r) rows[r] = min(first + 2 * r + half, last);
            add_chunks(m, in, lane % 16, 16, rows, sums);
#pragma unroll
            for (int r = 0; r < kDownRows / 2; ++r) {
                for (int mask = 8; mask; mask >>= 1) sums[r] += shuffle_xor(sums[r], mask);
                if (lane % 16 == 0) parts[e][2 * r + half] = sums[r];
            }
            continue;
        }
#pragma unroll 1
        for (int half = 0; half < kDownRows; half += kDownRows / 2) {
            float sums[kDownRows / 2];
#pragma unroll
            for (int r = 0; r < kDownRows / 2; ++r) rows[r] = min(first + half + r, last);
            row_products(m, in, rows, sums);
#pragma unroll
            for (int r = 0; r < kDownRows / 2; ++r)
                if (lane == r) parts[e][half + r] = sums[r];
        }
    }
    block_barrier();
    const int row = first + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kDownRows || row > last) return;
    float total = 0.0F;
    for (int e = 0; e < top_k; ++e) total = fmaf(weights[e], parts[e][threadIdx.x], total);
    if (experts > top_k) {
        const float open = shared_logit == nullptr ? 1.0F : sigmoid(*shared_logit);
        total = fmaf(open, parts[top_k][threadIdx.x], total);
    }
    y[row] = residual[row] + total;
}
