// A GPU imitated on one thread, so that the kernels' own sources run, and are tested, without one.
//
// A block's threads are fibers that take turns at barriers and shuffles; blocks come one after the
// other, so `static` stands for shared memory. Shared memory is poisoned before each block. A block
// in which nobody can go on ends the process with the kernel's name. Owns the twins of the first
// section of base.cuh; imitates no timing and no order but this one.

#pragma once

#include <math.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};

namespace emulator {

constexpr std::size_t kStack = 128 << 10;
constexpr std::size_t kShared = 228 << 10;

struct Warp {
    int live = 0, arrived = 0;
    uint64_t generation = 0;
    uint32_t slots[2][32][8];
};

struct Fiber {
    ucontext_t context;
    void* sp = nullptr;
    dim3 thread;
    int lane = 0;
    Warp* warp = nullptr;
    bool done = false;
    unsigned exchanges = 0;
    std::unique_ptr<char[]> stack;
};

inline Fiber* current;
inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Warp> warps;
inline dim3 block, block_size, grid_size;
inline int live, arrived;
inline uint64_t block_generation, progress;
alignas(128) inline unsigned char shared[kShared];
inline void (*body)(void*);
inline void* body_arguments;

#if defined(__x86_64__)
// Saves what the called must keep, exchanges stacks, restores.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.weak emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
inline void* scheduler_sp;
inline void yield() { emulator_switch(&current->sp, scheduler_sp); }
inline void resume(Fiber& fiber) { emulator_switch(&scheduler_sp, fiber.sp); }
#else
inline void yield() { swapcontext(&current->context, &scheduler); }
inline void resume(Fiber& fiber) { swapcontext(&scheduler, &fiber.context); }
#endif

inline void left() {
    Fiber& fiber = *current;
    fiber.done = true;
    ++progress;
    --live;
    if (live && arrived == live) arrived = 0, ++block_generation;
    Warp& warp = *fiber.warp;
    --warp.live;
    if (warp.live && warp.arrived == warp.live) warp.arrived = 0, ++warp.generation;
}

inline void enter() {
    body(body_arguments);
    left();
    yield();
    std::abort();
}

inline void prepare(Fiber& fiber) {
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.done = false;
    fiber.exchanges = 0;
#if defined(__x86_64__)
    auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStack) & ~uintptr_t{63};
    auto** at = reinterpret_cast<void**>(top);
    *--at = nullptr;  // so that the stack is as a call leaves it
    *--at = reinterpret_cast<void*>(&enter);
    for (int i = 0; i < 6; ++i) *--at = nullptr;
    fiber.sp = at;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, &enter, 0);
#endif
}

inline void run_block(const char* name, std::size_t dynamic) {
    const int count = static_cast<int>(block_size.x * block_size.y * block_size.z);
    std::memset(shared, 0xAA, dynamic);
    while (static_cast<int>(fibers.size()) < count) fibers.push_back(std::make_unique<Fiber>());
    warps.assign((count + 31) / 32, Warp{});
    live = count, arrived = 0;
    for (int i = 0; i < count; ++i) {
        Fiber& fiber = *fibers[i];
        prepare(fiber);
        const unsigned x = i % block_size.x, rest = i / block_size.x;
        fiber.thread = {x, rest % block_size.y, rest / block_size.y};
        fiber.lane = i % 32;
        fiber.warp = &warps[i / 32];
        ++fiber.warp->live;
    }
    while (live) {
        const uint64_t before = progress;
        for (int i = 0; i < count; ++i) {
            if (fibers[i]->done) continue;
            current = fibers[i].get();
            resume(*current);
        }
        if (progress == before) {
            std::fprintf(stderr, "%s: %d threads wait for one another for ever\n", name, live);
            std::abort();
        }
    }
}

inline void warp_arrive() {
    Warp& warp = *current->warp;
    const uint64_t mine = warp.generation;
    ++progress;
    if (++warp.arrived == warp.live) {
        warp.arrived = 0;
        ++warp.generation;
        return;
    }
    while (warp.generation == mine) yield();
}

inline void block_arrive() {
    const uint64_t mine = block_generation;
    ++progress;
    if (++arrived == live) {
        arrived = 0;
        ++block_generation;
        return;
    }
    while (block_generation == mine) yield();
}

// Shows up to eight words to the warp; returns those of all its lanes.
inline uint32_t (*exchange(const uint32_t* words, int count))[8] {
    auto& slots = current->warp->slots[current->exchanges++ & 1];
    std::memcpy(slots[current->lane], words, sizeof(uint32_t) * count);
    warp_arrive();
    return slots;
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::decay_t<A>*>(arguments[I])...);
}

template <class... A>
void launch(const char* name, void (*kernel)(A...), const unsigned* grid, unsigned threads,
            std::size_t dynamic, void** arguments) {
    using Closure = std::pair<void (*)(A...), void**>;
    Closure closure{kernel, arguments};
    if (dynamic > kShared) {
        std::fprintf(stderr, "%s: %zu bytes of shared memory\n", name, dynamic);
        std::abort();
    }
    body = [](void* given) {
        auto& [function, values] = *static_cast<Closure*>(given);
        call(function, values, std::index_sequence_for<A...>{});
    };
    body_arguments = &closure;
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {threads, 1, 1};
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                block = {x, y, z};
                run_block(name, dynamic);
            }
}

}  // namespace emulator

#define threadIdx (::emulator::current->thread)
#define blockIdx (::emulator::block)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)
#define KERNEL(threads) static void
#define DEVICE inline
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
inline uint4 load_written(const void* from) { return load_once(from); }
inline uint2 load_written_8(const void* from) { return load_once_8(from); }
inline void copy_async(void* shared, const void* global) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
        std::abort();
    std::memcpy(shared, global, 16);
}
inline void copies_committed() {}
template <int pending>
void copies_awaited() {}
