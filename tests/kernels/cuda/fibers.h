// The machine that emulator.h imitates: blocks of fibers that take turns.
//
// A block's threads are fibers that take turns at barriers and shuffles; blocks come one after the
// other, so `static` stands for shared memory. Shared memory is poisoned before each block. A block
// in which nobody can go on ends the process with the kernel's name.

#pragma once

#include <math.h>
#include <sched.h>
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

struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
};

struct Fiber {
    ucontext_t context;
    void* sp = nullptr;
    dim3 thread;
    int lane = 0;
    Warp* warp = nullptr;
    bool done = false;
    unsigned exchanges = 0;
    std::vector<Copy> copies;  // not awaited yet; one of no bytes ends a group
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
    fiber.copies.clear();
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
