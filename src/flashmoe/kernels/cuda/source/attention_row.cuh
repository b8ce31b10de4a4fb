// A head's query, key or value of one token, in a warp's registers: norm, rotation, and the form in
// which keys and values are held (kernels/kv.py).

#pragma once

#include "fixed.cuh"

constexpr int kInt8 = 3;  // a form beside the types of machine.cuh

// Cosine and sine of a float32 angle of any size, within a few 1e-8.
DEVICE void turn(float angle, float& cosine, float& sine) {
    const double half_turns = static_cast<double>(angle) * 0.318309886183790671538;
    const double whole = 2.0 * rint(0.5 * half_turns);
    sincospif(static_cast<float>(half_turns - whole), &sine, &cosine);
}

// A head's row in a warp's registers: pairs lane + 32 i, those that rotate first.
template <int width>
struct Row {
    static constexpr int kPairs = width / 64;
    float first[kPairs], second[kPairs];

    static DEVICE int first_at(int pair, int half) { return pair < half ? pair : 2 * pair; }
    static DEVICE int second_at(int pair, int half) {
        return pair < half ? pair + half : 2 * pair + 1;
    }
};

template <int width>
DEVICE Row<width> load_row(const float* from, int half) {
    Row<width> row;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < row.kPairs; ++i) {
        row.first[i] = from[row.first_at(lane + 32 * i, half)];
        row.second[i] = from[row.second_at(lane + 32 * i, half)];
    }
    return row;
}

template <int width>
DEVICE void normalize(Row<width>& row, const float* weight, float eps, int half) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float squares = 0.0F;
#pragma unroll
    for (int i = 0; i < row.kPairs; ++i)
        squares += row.first[i] * row.first[i] + row.second[i] * row.second[i];
    const float factor = 1.0F / sqrtf(warp_sum(squares) / static_cast<float>(width) + eps);
#pragma unroll
    for (int i = 0; i < row.kPairs; ++i) {
        row.first[i] *= factor * weight[row.first_at(lane + 32 * i, half)];
        row.second[i] *= factor * weight[row.second_at(lane + 32 * i, half)];
    }
}

// By the cosines (first) and sines (second) of `by`.
template <int width>
DEVICE void rotate(Row<width>& row, const Row<width>& by) {
#pragma unroll
    for (int i = 0; i < row.kPairs; ++i) {
        const float x = row.first[i], y = row.second[i];
        row.first[i] = x * by.first[i] - y * by.second[i];
        row.second[i] = y * by.first[i] + x * by.second[i];
    }
}

// The angles of a position; pairs that stay where they are have none.
template <int width>
DEVICE Row<width> turns(const float* frequencies, int position, int half) {
    Row<width> by;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < by.kPairs; ++i) {
        const int pair = lane + 32 * i;
        by.first[i] = 1.0F, by.second[i] = 0.0F;
        if (pair < half)
            turn(__fmul_rn(static_cast<float>(position), frequencies[pair]), by.first[i],
                 by.second[i]);
    }
    return by;
}

// A row of keys or values in its form, to element `at`; its scale to `scales`.
template <int form, int width>
DEVICE void append(const Row<width>& row, void* rows, int64_t at, float* scale, int half) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float unit = 1.0F;
    bool usable = true;
    if constexpr (form == kInt8) {
        float most = 0.0F, odd = 0.0F;
#pragma unroll
        for (int i = 0; i < row.kPairs; ++i) {
            most = fmaxf(most, fmaxf(fabsf(row.first[i]), fabsf(row.second[i])));
            if (!isfinite(row.first[i]) || !isfinite(row.second[i])) odd = 1.0F;
        }
        const bool finite = warp_max(odd) == 0.0F;
        unit = finite ? warp_max(most) / 127.0F : not_a_number();
        usable = unit > 0.0F;
        if (lane == 0) *scale = unit;
    }
#pragma unroll
    for (int i = 0; i < 2 * row.kPairs; ++i) {
        const int pair = lane + 32 * (i / 2);
        const float x = i % 2 ? row.second[i / 2] : row.first[i / 2];
        const int64_t to = at + (i % 2 ? row.second_at(pair, half) : row.first_at(pair, half));
        if constexpr (form == kF32) {
            static_cast<float*>(rows)[to] = x;
        } else if constexpr (form == kInt8) {
            const int code = usable ? __float2int_rn(x / unit) : 0;
            static_cast<int8_t*>(rows)[to] = static_cast<int8_t>(max(-127, min(127, code)));
        } else {
            static_cast<uint16_t*>(rows)[to] = form == kF16 ? float_to_half(x) : float_to_bf16(x);
        }
    }
}
