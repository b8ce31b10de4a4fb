// A GPU imitated on one thread, so that the kernels' own sources run, and are tested, without one.
//
// Owns the twins of the first section of machine.cuh; fibers.h has the machine. Imitates no timing
// and no order but one.

#pragma once

#include <bit>

#include "fibers.h"

#define threadIdx (::emulator::current->thread)
#define blockIdx (::emulator::block)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)
#define KERNEL(threads) static void
#define KERNEL_TOGETHER(threads, blocks) static void
#define DEVICE inline
#define GIVEN const
#define __shared__ static
#define __restrict__ __restrict
#define DYNAMIC_SHARED(name) unsigned char* name = ::emulator::shared
#define EMULATED_LAUNCH(kernel)                                                                  \
    extern "C" void launch_##kernel(const unsigned* grid, unsigned threads, std::size_t dynamic, \
                                    void** arguments) {                                          \
        ::emulator::launch(#kernel, kernel, grid, threads, dynamic, arguments);                  \
    }

inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<uint32_t>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyintf(value)); }
inline float __fmul_rn(float a, float b) { return a * b; }  // built without contraction
inline float __fadd_rn(float a, float b) { return a + b; }
// Of x half turns.
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = static_cast<float>(std::sin(M_PI * x));
    *cosine = static_cast<float>(std::cos(M_PI * x));
}
inline void __threadfence_system() {}
inline void __threadfence() {}
using std::isfinite;
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

template <class T>
T shuffle(T value, int lane) {
    static_assert(sizeof(T) == 4);
    uint32_t word;
    std::memcpy(&word, &value, 4);
    std::memcpy(&value, emulator::exchange(&word, 1)[lane & 31], 4);
    return value;
}
template <class T>
T shuffle_xor(T value, int mask) {
    return shuffle(value, ::emulator::current->lane ^ mask);
}
inline unsigned warp_ballot(bool value) {
    const uint32_t word = value;
    auto* lanes = ::emulator::exchange(&word, 1);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= lanes[lane][0] << lane;
    return bits;
}
inline int popcount(unsigned bits) { return std::popcount(bits); }
inline void warp_barrier() { ::emulator::warp_arrive(); }
inline void block_barrier() { ::emulator::block_arrive(); }

inline int dot_us(uint32_t a, uint32_t b, int c) {
    for (int i = 0; i < 32; i += 8)
        c += static_cast<int>(a >> i & 255) * static_cast<int8_t>(b >> i & 255);
    return c;
}
inline int dot_uu(uint32_t a, uint32_t b, int c) {
    for (int i = 0; i < 32; i += 8) c += static_cast<int>((a >> i & 255) * (b >> i & 255));
    return c;
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = uint64_t{b} << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i)
        out |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return out;
}
namespace emulator {
template <class B>
void multiply(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    auto* lanes = exchange(words, 6);
    const int lane = current->lane;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 32; ++k) {
            // a: word (k / 16) * 2 + row / 8 of lane (row % 8) * 4 + k % 16 / 4, byte k % 4
            const uint32_t wa = lanes[row % 8 * 4 + k % 16 / 4][k / 16 * 2 + row / 8];
            // b: word k / 16 of lane column * 4 + k % 16 / 4, byte k % 4
            const uint32_t wb = lanes[column * 4 + k % 16 / 4][4 + k / 16];
            d[i] +=
                static_cast<int>(wa >> 8 * (k % 4) & 255) * static_cast<B>(wb >> 8 * (k % 4) & 255);
        }
    }
}
}  // namespace emulator
inline void multiply_us(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::multiply<int8_t>(d, a, b);
}
inline void multiply_uu(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::multiply<uint8_t>(d, a, b);
}
inline void multiply_us(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const int (&c)[4]) {
    std::memcpy(d, c, sizeof d);
    multiply_us(d, a, b);
}
inline void multiply_uu(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const int (&c)[4]) {
    std::memcpy(d, c, sizeof d);
    multiply_uu(d, a, b);
}
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    for (const uint32_t word : words)
        if (word & 0x1FFF) std::abort();  // what a GPU would leave out
    auto* lanes = emulator::exchange(words, 6);
    const int lane = emulator::current->lane;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; ++k) {
            // a: word (k / 4) * 2 + row / 8 of lane (row % 8) * 4 + k % 4
            const uint32_t wa = lanes[row % 8 * 4 + k % 4][k / 4 * 2 + row / 8];
            // b: word k / 4 of lane column * 4 + k % 4
            const uint32_t wb = lanes[column * 4 + k % 4][4 + k / 4];
            d[i] += __uint_as_float(wa) * __uint_as_float(wb);
        }
    }
}
inline float half_to_float(uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}
inline uint16_t float_to_half(float value) {
    const auto rounded = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &rounded, 2);
    return bits;
}
inline uint4 load_once(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 16) std::abort();
    return *static_cast<const uint4*>(from);
}
inline uint2 load_once_8(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 8) std::abort();
    return *static_cast<const uint2*>(from);
}
inline uint32_t load_once_4(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 4) std::abort();
    return *static_cast<const uint32_t*>(from);
}
inline uint4 load_host(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 16) std::abort();
    return *static_cast<const uint4*>(from);
}
inline uint32_t load_number(const uint32_t* from) { return *from; }
inline uint32_t load_number(const uint16_t* from) { return *from; }
inline uint4 load_written(const void* from) { return load_once(from); }
inline uint2 load_written_8(const void* from) { return load_once_8(from); }
inline uint16_t load_once_2(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 2) std::abort();
    return *static_cast<const uint16_t*>(from);
}
// Take effect no sooner than they are waited for, so that a kernel which does not wait is caught.
inline void copy_async(void* shared, const void* global, unsigned bytes = 16) {
    if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes)
        std::abort();
    emulator::current->copies.push_back({shared, global, bytes});
}
inline void copy_async_8(void* shared, const void* global) { copy_async(shared, global, 8); }
inline void copies_committed() { emulator::current->copies.push_back({}); }
template <int pending>
void copies_awaited() {
    auto& copies = emulator::current->copies;
    int after = 0;  // groups
    for (const auto& copy : copies) after += copy.bytes == 0;
    std::size_t done = 0;
    for (; after > pending; ++done) {
        const auto [to, from, bytes] = copies[done];
        if (bytes == 0)
            --after;
        else
            std::memcpy(to, from, bytes);
    }
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}
// The same: they come when the warp waits for them, and only as many as it has said.
struct Arrival {
    std::vector<emulator::Copy> coming;
    int bytes, ended;
};
inline void arrivals_ready(Arrival* arrivals, int count) {
    if (threadIdx.x % 32 == 0)
        for (int i = 0; i < count; ++i)
            arrivals[i].coming.clear(), arrivals[i].bytes = 0, arrivals[i].ended = 0;
    warp_barrier();
}
inline void bulk_copy(void* shared, const void* global, int bytes, Arrival& arrival) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16 ||
        bytes % 16)
        std::abort();
    if (threadIdx.x % 32) return;
    arrival.coming.push_back({shared, global, static_cast<unsigned>(bytes)});
    arrival.bytes += bytes;
}
inline void bulk_end(Arrival& arrival, int bytes) {
    if (threadIdx.x % 32) return;
    if (bytes != arrival.bytes) std::abort();  // it would never be over, or too early
    ++arrival.ended;
}
inline void bulk_none() {}
inline void bulk_await(Arrival& arrival, int turn, int) {
    warp_barrier();
    if (threadIdx.x % 32 == 0) {
        if (arrival.ended != turn + 1) std::abort();  // nobody would come, or somebody else
        for (const auto [to, from, bytes] : arrival.coming) std::memcpy(to, from, bytes);
        arrival.coming.clear();
        arrival.bytes = 0;
    }
    warp_barrier();
}
template <class T>
T load_shared(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % sizeof(T)) std::abort();
    return *static_cast<const T*>(from);
}
template <class T>
T* afresh(T* address) {
    return address;
}
inline int afresh(int number) { return number; }
void copies_awaited() {}
inline void wait_a_moment() {
    ++::emulator::progress;
    sched_yield();
    ::emulator::yield();
}
