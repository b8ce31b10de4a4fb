// The draw's vector code, written once and compiled for each instruction set.
//
// Included by draw_*.cpp after FLASHMOE_DOUBLES (float64 numbers a vector) and FLASHMOE_TABLE are
// defined; those files are compiled without contraction to fused operations. Everything but the
// table has internal linkage, and nothing of the standard library is instantiated: see RowKernels
// in dispatch.h.

#pragma once

#if FLASHMOE_DOUBLES > 2
#include <immintrin.h>
#endif

#include "draw.h"

namespace flashmoe {
namespace {

constexpr std::size_t kDoubles = FLASHMOE_DOUBLES;
constexpr std::size_t kStep = 16;                   // weights that are added to the partial sums
constexpr std::size_t kVectors = kStep / kDoubles;  // of them, so many vectors at once

typedef double Doubles __attribute__((vector_size(8 * FLASHMOE_DOUBLES)));
typedef std::int64_t Longs __attribute__((vector_size(8 * FLASHMOE_DOUBLES)));

constexpr std::size_t kFloats = 2 * kDoubles;

typedef float Floats __attribute__((vector_size(4 * kFloats)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kFloats)));

inline __attribute__((always_inline)) Doubles splat(double x) { return x - Doubles{}; }
inline __attribute__((always_inline)) Floats splat(float x) { return x - Floats{}; }

// a > b ? a : b, for which compilers without leave to ignore NaN take three instructions.
inline __attribute__((always_inline)) Doubles larger(Doubles a, Doubles b) {
#if FLASHMOE_DOUBLES == 8
    return _mm512_max_pd(a, b);
#elif FLASHMOE_DOUBLES == 4
    return _mm256_max_pd(a, b);
#else
    return a > b ? a : b;
#endif
}

inline __attribute__((always_inline)) Floats larger(Floats a, Floats b) {
#if FLASHMOE_DOUBLES == 8
    return _mm512_max_ps(a, b);
#elif FLASHMOE_DOUBLES == 4
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

inline __attribute__((always_inline)) Doubles load(const double* from) {
    Doubles v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

inline __attribute__((always_inline)) Doubles load(const float* from) {
#if FLASHMOE_DOUBLES == 8
    return reinterpret_cast<Doubles>(_mm512_cvtps_pd(_mm256_loadu_ps(from)));
#elif FLASHMOE_DOUBLES == 4
    return reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm_loadu_ps(from)));
#else
    return Doubles{static_cast<double>(from[0]), static_cast<double>(from[1])};
#endif
}

// 2^f by Estrin's scheme, f from -1/2 to 1/2: the polynomial of degree 9 with p(0) = 1 whose
// largest relative error, 7.8e-14, is least. Short chains of dependent steps keep the units busy.
inline __attribute__((always_inline)) Doubles power_of(Doubles f) {
    const Doubles f2 = f * f, f4 = f2 * f2;
    const Doubles p01 = splat(0x1.62e42fefa08dcp-1) * f + splat(1.0);
    const Doubles p23 = splat(0x1.c6b08d7a95072p-5) * f + splat(0x1.ebfbdff823df0p-3);
    const Doubles p45 = splat(0x1.5d87ebe42d79dp-10) * f + splat(0x1.3b2ab717fb0b6p-7);
    const Doubles p67 = splat(0x1.fffd75179b1a0p-17) * f + splat(0x1.4308acc67a164p-13);
    const Doubles p89 = splat(0x1.89c489e9e3ae4p-24) * f + splat(0x1.63d0ec28f10f2p-20);
    return (p01 + p23 * f2) + ((p45 + p67 * f2) + p89 * f4) * f4;
}

inline __attribute__((always_inline)) Doubles weight_of(Doubles x, Doubles peak, Doubles factor) {
    const Doubles low = splat(-1023.0), round = splat(0x1.8p52);
    Doubles t = (x - peak) * factor;
    t = larger(t, low);
    const Doubles shifted = t + round;  // its lowest bits are n
    const Doubles p = power_of(t - (shifted - round));
    Longs bits, n;
    __builtin_memcpy(&bits, &p, sizeof bits);
    __builtin_memcpy(&n, &shifted, sizeof n);
    bits += n << 52;
    Doubles weight;
    __builtin_memcpy(&weight, &bits, sizeof weight);
    return weight;
}

// Eight partial sums.
struct Sums {
    Doubles part[kVectors / 2];
};

template <class Number>
inline __attribute__((always_inline)) void step(const Number* x, Doubles peak, Doubles factor,
                                                Sums& sums) {
    Doubles weight[kVectors];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kVectors; ++i)
        weight[i] = weight_of(load(x + i * kDoubles), peak, factor);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < kVectors / 2; ++i)
        sums.part[i] += weight[i] + weight[i + kVectors / 2];
}

template <class Number>
inline double mass(const Number* x, std::size_t count, const Scale& scale) {
    const Doubles peak = splat(scale.peak), factor = splat(scale.factor);
    Sums sums{};
    std::size_t i = 0;
    for (; i + kStep <= count; i += kStep) step(x + i, peak, factor, sums);
    if (i < count) {
        Number rest[kStep];
        for (std::size_t j = 0; j < kStep; ++j)
            rest[j] = i + j < count ? x[i + j] : -static_cast<Number>(__builtin_inf());
        step(rest, peak, factor, sums);
    }
    double partial[8];
    __builtin_memcpy(partial, &sums, sizeof partial);
    for (std::size_t width = 4; width > 0; width /= 2)
        for (std::size_t j = 0; j < width; ++j) partial[j] += partial[j + width];
    return partial[0];
}

double mass32(const float* x, std::size_t count, const Scale& scale) {
    return mass(x, count, scale);
}

double mass64(const double* x, std::size_t count, const Scale& scale) {
    return mass(x, count, scale);
}

void weights(const double* x, std::size_t count, const Scale& scale, double* y) {
    const Doubles peak = splat(scale.peak), factor = splat(scale.factor);
    std::size_t i = 0;
    for (; i + kDoubles <= count; i += kDoubles) {
        const Doubles weight = weight_of(load(x + i), peak, factor);
        __builtin_memcpy(y + i, &weight, sizeof weight);
    }
    if (i == count) return;
    double rest[kDoubles] = {};
    __builtin_memcpy(rest, x + i, (count - i) * sizeof *x);
    const Doubles weight = weight_of(load(rest), peak, factor);
    __builtin_memcpy(y + i, &weight, (count - i) * sizeof *y);
}

// As weight_of, with t from -64 up; the polynomial is Cephes' of 2^f (Moshier, exp2f).
inline __attribute__((always_inline)) Floats guess_of(Floats x, Floats peak, Floats factor) {
    const Floats low = splat(-64.0F), round = splat(0x1.8p23F);
    Floats t = (x - peak) * factor;
    t = larger(t, low);
    const Floats shifted = t + round, f = t - (shifted - round), f2 = f * f;
    const Floats p01 = splat(6.931472028550421e-1F) * f + splat(1.0F);
    const Floats p23 = splat(5.550332471162809e-2F) * f + splat(2.402264791363012e-1F);
    const Floats p45 = splat(1.339887440266574e-3F) * f + splat(9.618437357674640e-3F);
    const Floats p = (p01 + p23 * f2) + (p45 + splat(1.535336188319500e-4F) * f2) * (f2 * f2);
    Ints bits, n;
    __builtin_memcpy(&bits, &p, sizeof bits);
    __builtin_memcpy(&n, &shifted, sizeof n);
    bits += n << 23;
    Floats weight;
    __builtin_memcpy(&weight, &bits, sizeof weight);
    return weight;
}

// In sums of 16 scores each, or of as many as there are lanes in each of four vectors.
double guess32(const float* x, std::size_t count, const Scale& scale) {
    constexpr std::size_t kChains = 32 / kFloats;
    const Floats peak = splat(static_cast<float>(scale.peak));
    const Floats factor = splat(static_cast<float>(scale.factor));
    Floats sums[kChains] = {};
    float rest[32];
    for (std::size_t i = 0; i < count; i += 32) {
        const float* from = x + i;
        if (i + 32 > count) {
            for (std::size_t j = 0; j < 32; ++j)
                rest[j] = i + j < count ? x[i + j] : -__builtin_inff();
            from = rest;
        }
#pragma GCC unroll 8
        for (std::size_t j = 0; j < kChains; ++j) {
            Floats v;
            __builtin_memcpy(&v, from + j * kFloats, sizeof v);
            sums[j] += guess_of(v, peak, factor);
        }
    }
    double total = 0;
    for (const Floats& sum : sums)
        for (std::size_t j = 0; j < kFloats; ++j) total += static_cast<double>(sum[j]);
    return total;
}

// The highest number has no order of sums. A number less itself is 0 unless it is not finite.
template <class Number, class Vector, class Bits>
inline double highest(const Number* x, std::size_t count) {
    constexpr std::size_t kWide = sizeof(Vector) / sizeof(Number);
    constexpr std::size_t kChains = 4;
    Vector most[kChains];
    Bits odd[kChains] = {};
    for (auto& each : most) each = x[0] - Vector{};
    std::size_t i = 0;
    for (; i + kChains * kWide <= count; i += kChains * kWide) {
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kChains; ++j) {
            Vector v;
            __builtin_memcpy(&v, x + i + j * kWide, sizeof v);
            most[j] = larger(v, most[j]);
            const Vector none = v - v;
            Bits bits;
            __builtin_memcpy(&bits, &none, sizeof bits);
            odd[j] |= bits;
        }
    }
    Number top = x[0], wrong = 0;
    for (std::size_t j = 0; j < kChains; ++j)
        for (std::size_t k = 0; k < kWide; ++k) top = most[j][k] > top ? most[j][k] : top;
    const Bits all = (odd[0] | odd[1]) | (odd[2] | odd[3]);
    for (std::size_t k = 0; k < kWide; ++k)
        if (all[k] != 0) return static_cast<double>(__builtin_nan(""));
    for (; i < count; ++i) {
        top = x[i] > top ? x[i] : top;
        wrong += x[i] - x[i];
    }
    return static_cast<double>(wrong == 0 ? top : wrong);
}

double highest32(const float* x, std::size_t count) {
    return highest<float, Floats, Ints>(x, count);
}

double highest64(const double* x, std::size_t count) {
    return highest<double, Doubles, Longs>(x, count);
}

}  // namespace

extern const DrawKernels FLASHMOE_TABLE;
const DrawKernels FLASHMOE_TABLE = {highest32, highest64, mass32, mass64, guess32, weights};

}  // namespace flashmoe
