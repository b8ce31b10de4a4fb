// The router's choice of one token, by a warp: for one token's launches and a prompt's rows alike.
//
// Twin: route of kernels/reference.py.

#pragma once

#include "machine.cuh"

constexpr int kMostExperts = 1024;  // of a layer

// The lane's share of a softmax over `count` logits, at most 32 * each, and of the top_k best, best
// first: lane k has the k-th one's number and weight.
template <int each>
DEVICE void choose_of(const float* __restrict__ logits, int count, int top_k, bool renormalize,
                      int& number, float& chosen) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float own[each];
    float most = -infinity();
#pragma unroll
    for (int i = 0; i < each; ++i) {
        const int expert = lane + 32 * i;
        own[i] = expert < count ? logits[expert] : -infinity();
        most = fmaxf(most, own[i]);
    }
    most = warp_max(most);
    float total = 0.0F;
#pragma unroll
    for (int i = 0; i < each; ++i)
        if (lane + 32 * i < count) total += expf(own[i] - most);
    total = warp_sum(total);
    for (int k = 0; k < top_k; ++k) {
        float best = -infinity();
        int at = kMostExperts;
#pragma unroll
        for (int i = 0; i < each; ++i) {
            if (own[i] > best) best = own[i], at = lane + 32 * i;
        }
        for (int mask = 16; mask; mask >>= 1) {
            const float other = shuffle_xor(best, mask);
            const int its = shuffle_xor(at, mask);
            if (other > best || (other == best && its < at)) best = other, at = its;
        }
        if (at >= count) at = k, best = not_a_number();  // logits that are none
        if (lane == k) chosen = expf(best - most) / total, number = at;
#pragma unroll
        for (int i = 0; i < each; ++i)
            if (lane + 32 * i == at) own[i] = -infinity();
    }
    if (renormalize) chosen /= warp_sum(lane < top_k ? chosen : 0.0F);
}

// The same of any number up to kMostExperts, in as few registers as it takes.
DEVICE void choose(const float* __restrict__ logits, int count, int top_k, bool renormalize,
                   int& number, float& chosen) {
    if (count <= 256) {
        choose_of<8>(logits, count, top_k, renormalize, number, chosen);
    } else if (count <= 512) {
        choose_of<16>(logits, count, top_k, renormalize, number, chosen);
    } else {
        choose_of<kMostExperts / 32>(logits, count, top_k, renormalize, number, chosen);
    }
}
