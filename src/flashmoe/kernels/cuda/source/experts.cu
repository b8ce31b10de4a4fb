// One token's feed-forward part: the router's choice, the chosen experts and the shared one.
//
// An expert lies in a slot of an arena; which slot never shows in the result. Twins: route, experts
// and swiglu of kernels/reference.py.

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
    int ids[32];      // what the router chose
    int slots[32];    // where each lies, or will
    int sources[32];  // of what has to be brought: its place in RAM, kAsked until the host says it
    int asked;        // twice the step's number, and one more where the host must say a source
    int answered;     // negative: the pass of this number is given up
    int early[4];     // what was given a slot before the router chose, -1 for none
    int early_slots[4];
    int unused[6];
};
constexpr int kThere = -1, kAsked = -2;  // in place of a source
constexpr int kMostEarly = 4;

// What anticipate() has found of a layer: numbers, slots and sources, as route() says them.
struct Early {
    int ids[kMostEarly], slots[kMostEarly], sources[kMostEarly];
};

// Slots that hold nothing, in the order in which the device takes them (mailbox.py): the host's
// memory. `offered` counts all that there ever were.
constexpr unsigned kOffers = 1024;
struct Offers {
    unsigned offered, unused[15];
    int slots[kOffers];
};

// The slots of a layer's experts, numbers in lanes below `top_k`, and from where those come that
// have none: these take slots that are on offer. `table` says where each lies, -1 for nowhere,
// `records` where in RAM, if that is for the device to know.
//
// A slot is offered only after the table has forgotten who was in it. So the table must be read
// after `offered`: what it tells of slots on offer by then is nothing. The number known since the
// layer before mostly does, and spares a way to the host and back. It is one number for all lanes:
// where they do not read at once, each might find another.
// `early`, where there is any, has slots already, and is brought there beside all this.
DEVICE void find(const int* table, const int* records, const Offers* offers, const Letter* letter,
                 const Early* early, int* input, bool mine, int number, int& slot, int& source) {
    const int lane = static_cast<int>(threadIdx.x), step = input[2];
    const auto taken = static_cast<unsigned>(input[3]);
    auto offered = static_cast<unsigned>(input[4]);
    const volatile Offers* ring = offers;
    while (true) {
        slot = mine ? static_cast<const volatile int*>(table)[number] : 0;
        const int next = ring->slots[(taken + static_cast<unsigned>(lane)) % kOffers];
        const unsigned latest = shuffle(static_cast<unsigned>(ring->offered), 0);
        source =
            mine && records != nullptr ? static_cast<const volatile int*>(records)[number] : -1;
        if (early != nullptr && mine)
            for (int k = 0; k < kMostEarly; ++k)
                if (early->ids[k] == number) slot = early->slots[k];
        const bool absent = slot < 0;
        const unsigned all = warp_ballot(absent);
        const int rank = popcount(all & ((1U << lane) - 1));
        const int wanted = popcount(all);
        const int offer = shuffle(next, rank);
        const bool enough = offered - taken >= static_cast<unsigned>(wanted);
        if (lane == 0) input[4] = static_cast<int>(latest);
        source = !absent ? kThere : source < 0 ? kAsked : source;
        if (enough) {
            if (absent) slot = offer;
            if (lane == 0) {
                input[3] = static_cast<int>(taken) + wanted;
                input[5] = static_cast<int>(offered);
            }
            return;
        }
        if (warp_any(static_cast<const volatile Letter*>(letter)->answered == -step)) {
            if (absent) slot = 0, source = kAsked;  // nobody will bring it
            return;
        }
        if (offered == latest) wait_a_moment();
        offered = latest;
        __threadfence_system();
    }
}

// Softmax over the router's logits; the top_k ids, best first, ties to the lower, their weights,
// where each lies and from where it comes. Without logits all experts are chosen, with weight 1.
// One warp. Where there is no letter all of them lie where `table` says, and nobody hears of it.
//
// Letter, table, records and offers are the host's memory, `input` the step's own numbers (lookup).
KERNEL(32)
route(const float* __restrict__ logits, int count, int top_k, int renormalize, const int* table,
      const int* records, const Offers* offers, int* input, Letter* letter, const Early* early,
      int* __restrict__ ids, float* __restrict__ weights, int* __restrict__ slots,
      int* __restrict__ sources) {
    const int lane = static_cast<int>(threadIdx.x);
    float chosen = 1.0F;
    int number = lane;
    if (logits != nullptr) {
        choose(logits, count, top_k, renormalize, number, chosen);
    }
    const bool mine = lane < top_k;
    int slot = 0, source = kThere;
    if (letter == nullptr) {
        slot = mine ? table[number] : 0;
    } else {
        find(table, records, offers, letter, early, input, mine, number, slot, source);
        volatile Letter* mail = letter;
        if (mine) mail->ids[lane] = number, mail->slots[lane] = slot, mail->sources[lane] = source;
        __threadfence_system();
        const bool asks = warp_any(mine && source == kAsked);
        if (lane == 0) mail->asked = 2 * input[2] + (asks ? 1 : 0);
    }
    if (mine) ids[lane] = number, weights[lane] = chosen, slots[lane] = slot;
    if (mine && sources != nullptr) sources[lane] = source;
}

// Before a layer's router has chosen: of the `reach` experts that it would choose first for
// `logits` that are not final, those in no slot take slots that are on offer, up to `most` of them
// and as far as `spare` are left; only what the device finds in RAM. The letter is that layer's.
//
// What comes into these slots may come while the layer before is computed. So they are among those
// that were on offer before that one's experts were looked up: the table had forgotten by then who
// was in them.
KERNEL(32)
anticipate(const float* __restrict__ logits, int count, int reach, int most, int spare,
           const int* table, const int* records, const Offers* offers, int* input, Letter* letter,
           Early* early) {
    const int lane = static_cast<int>(threadIdx.x);
    float chosen = 0.0F;
    int number = 0;
    choose(logits, count, reach, false, number, chosen);
    const bool mine = lane < reach;
    const auto taken = static_cast<unsigned>(input[3]);
    const volatile Offers* ring = offers;
    const int slot = mine ? static_cast<const volatile int*>(table)[number] : 0;
    const int source = mine ? static_cast<const volatile int*>(records)[number] : -1;
    const int next = ring->slots[(taken + static_cast<unsigned>(lane)) % kOffers];
    const unsigned latest = ring->offered;
    const unsigned wanted = warp_ballot(slot < 0 && source >= 0);
    const int left = static_cast<int>(static_cast<unsigned>(input[5]) - taken) - spare;
    const int count_taken = max(min(min(popcount(wanted), most), left), 0);
    const int rank = popcount(wanted & ((1U << lane) - 1));
    const int offer = shuffle(next, rank);
    volatile Letter* mail = letter;
    if (lane >= count_taken && lane < kMostEarly) {
        early->ids[lane] = -1, early->slots[lane] = 0, early->sources[lane] = kThere;
        mail->early[lane] = -1;
    }
    if ((wanted >> lane & 1) && rank < count_taken) {
        early->ids[rank] = number, early->slots[rank] = offer, early->sources[rank] = source;
        mail->early[rank] = number, mail->early_slots[rank] = offer;
    }
    if (lane == 0) {
        input[3] = static_cast<int>(taken) + count_taken;
        input[4] = static_cast<int>(latest);
    }
}

// Chunks of 16 bytes from `first` to `end` from the host's memory, by a block.
DEVICE void copy_in(const uint4* from, uint4* to, int first, int end) {
    constexpr int kAtOnce = 8;  // under way to a thread: the host is a microsecond away
    const int threads = static_cast<int>(blockDim.x);
    for (int i = first + static_cast<int>(threadIdx.x); i < end; i += kAtOnce * threads) {
        uint4 chunks[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
            if (i + j * threads < end) chunks[j] = load_host(from + i + j * threads);
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
            if (i + j * threads < end) to[i + j * threads] = chunks[j];
    }
}

// Brings records of `chunks` 16 bytes from RAM to the slots of those chosen that are not there yet:
// first those whose place in RAM the device has found itself, then those that the host says.
// `records` is RAM as the device sees it. Every block takes its share of each.
KERNEL(256)
bring(const uint8_t* records, int64_t record_stride, uint8_t* arena, int64_t slot_bytes, int chunks,
      const int* __restrict__ slots, const int* __restrict__ sources, int top_k,
      const int* __restrict__ input, const Letter* letter) {
    __shared__ int told;
    const int share = (chunks + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
    const int first = share * static_cast<int>(blockIdx.x), end = min(first + share, chunks);
    const volatile Letter* mail = letter;
    for (int asked = 0; asked < 2; ++asked) {
        for (int k = 0; k < top_k; ++k) {
            int source = sources[k];
            if (source == kThere || (source == kAsked) != (asked == 1)) continue;
            if (asked) {
                if (threadIdx.x == 0) {
                    while ((told = mail->sources[k]) == kAsked && mail->answered != -input[2])
                        wait_a_moment();
                    __threadfence_system();
                }
                block_barrier();
                source = told;
                block_barrier();
                if (source == kAsked) return;  // given up
            }
            copy_in(reinterpret_cast<const uint4*>(records + int64_t{source} * record_stride),
                    reinterpret_cast<uint4*>(arena + int64_t{slots[k]} * slot_bytes), first, end);
        }
    }
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
