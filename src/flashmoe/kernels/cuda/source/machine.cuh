// What every kernel builds on: instructions that C++ has no name for, floats of 16 bits, sums over
// a warp or block.
//
// Owns no formula of the model. Sources are compiled at run time (NVRTC) without any header of the
// toolkit's; tests compile the same files with an ordinary C++ compiler, against a header that
// imitates the machine (tests/kernels/cuda/emulator.h) and gives the first section's functions.

#pragma once

#ifdef FLASHMOE_EMULATED
#include "emulator.h"
#else

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long long;
using uint64_t = unsigned long long;

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// So many blocks of it fit a processor at once.
#define KERNEL_TOGETHER(threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__
// A structure as a kernel's parameter, read where it lies: without this word compilers may copy it
// into every thread's own memory first.
#define GIVEN const __grid_constant__
// Shared memory whose size the launch gives: a pointer to bytes, aligned to 16.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

template <class T>
DEVICE T shuffle(T value, int lane) {
    return __shfl_sync(0xFFFFFFFFU, value, lane);
}
template <class T>
DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFU, value, mask);
}
// A bit for each lane whose value is true.
DEVICE unsigned warp_ballot(bool value) { return __ballot_sync(0xFFFFFFFFU, value); }
DEVICE int popcount(unsigned bits) { return __popc(bits); }
DEVICE void warp_barrier() { __syncwarp(); }
DEVICE void block_barrier() { __syncthreads(); }

// c + the products of four unsigned bytes and four bytes with a sign.
DEVICE int dot_us(uint32_t a, uint32_t b, int c) {
    int d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
// The same, both unsigned.
DEVICE int dot_uu(uint32_t a, uint32_t b, int c) {
    int d;
    asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}
// d = c + a b, a (16, 32) of unsigned bytes, b (32, 8) of bytes with a sign, in the fragments of
// PTX's mma.m16n8k32.
#define MULTIPLY_BYTES(type)                                                                      \
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8." type                                          \
        ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                          \
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), \
          "r"(c[2]), "r"(c[3]))
DEVICE void multiply_us(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const int (&c)[4]) {
    MULTIPLY_BYTES("s8");
}
// The same of b's bytes without a sign.
DEVICE void multiply_uu(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const int (&c)[4]) {
    MULTIPLY_BYTES("u8");
}
#undef MULTIPLY_BYTES
// d += a b.
DEVICE void multiply_us(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_us(d, a, b, d);
}
DEVICE void multiply_uu(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_uu(d, a, b, d);
}
// d (16, 8) += a (16, 8), b (8, 8) of floats with 11 bits (round_tf32), in the fragments of PTX's
// mma.m16n8k8.
DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE float half_to_float(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
DEVICE uint16_t float_to_half(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
// 16 bytes that only this warp reads, and once: past the first cache.
DEVICE uint4 load_once(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
DEVICE uint2 load_once_8(const void* from) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(from));
    return v;
}
DEVICE uint32_t load_once_4(const void* from) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}
DEVICE uint16_t load_once_2(const void* from) {
    uint16_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(from));
    return v;
}
// A number that no kernel at work writes, and that other lanes of the warp may want too.
DEVICE uint32_t load_number(const uint32_t* from) {
    uint32_t v;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}
DEVICE uint32_t load_number(const uint16_t* from) {
    uint16_t v;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(from));
    return v;
}
// Bytes of global memory that this very kernel may have written before a barrier. (Pointers that
// were read from memory themselves would be taken to lead anywhere.)
DEVICE uint4 load_written(const void* from) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}
DEVICE uint2 load_written_8(const void* from) {
    uint2 v;
    asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
    return v;
}
// 16 bytes of the host's memory, as they are there at this moment.
DEVICE uint4 load_host(const void* from) {
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}
// 16 bytes from global to shared memory, both addresses aligned so, in the background.
DEVICE void copy_async(void* shared, const void* global) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
// The same of 8 bytes.
DEVICE void copy_async_8(void* shared, const void* global) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(global) : "memory");
}
DEVICE void copies_committed() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` groups are under way.
template <int pending>
DEVICE void copies_awaited() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
// What an Arrival in shared memory is waited for: bytes that a warp has asked for. On Hopper and
// later one thread's word moves as many as one likes; before, every lane brings its 16.
#if __CUDA_ARCH__ >= 900
struct Arrival {
    uint64_t state;
};
DEVICE uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
// By a warp, before anything else is done with them: nothing is under way.
DEVICE void arrivals_ready(Arrival* arrivals, int count) {
    if (threadIdx.x % 32 == 0) {
#pragma unroll 1
        for (int i = 0; i < count; ++i)
            asm volatile(
                "mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrivals + i))
                : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
}
// By a warp: `bytes`, a multiple of 16 as both addresses are, are on their way.
DEVICE void bulk_copy(void* shared, const void* global, int bytes, Arrival& arrival) {
    if (threadIdx.x % 32 == 0)
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
            "[%3];" ::"r"(shared_address(shared)),
            "l"(global), "r"(bytes), "r"(shared_address(&arrival))
            : "memory");
}
// No more come for this arrival than these, in all, until it is waited for.
DEVICE void bulk_end(Arrival& arrival, int bytes) {
    if (threadIdx.x % 32 == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                         shared_address(&arrival)),
                     "r"(bytes)
                     : "memory");
}
// An arrival that is not wanted any more, where ends are counted.
DEVICE void bulk_none() {}
// By a warp: waits for the end that is the `turn`th of this arrival, from 0 on; at most `later`
// ends were told since.
DEVICE void bulk_await(Arrival& arrival, int turn, int later) {
    uint32_t come = 0;
    while (!come)
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(come)
            : "r"(shared_address(&arrival)), "r"(turn & 1)
            : "memory");
}
#else
struct Arrival {};
DEVICE void arrivals_ready(Arrival*, int) {}
DEVICE void bulk_copy(void* shared, const void* global, int bytes, Arrival&) {
    for (int i = 16 * (threadIdx.x % 32); i < bytes; i += 512)
        copy_async(static_cast<char*>(shared) + i, static_cast<const char*>(global) + i);
}
DEVICE void bulk_end(Arrival&, int) { copies_committed(); }
DEVICE void bulk_none() { copies_committed(); }
DEVICE void bulk_await(Arrival&, int, int later) {
    switch (later) {
        case 0: copies_awaited<0>(); break;
        case 1: copies_awaited<1>(); break;
        case 2: copies_awaited<2>(); break;
        default: copies_awaited<3>();
    }
    __syncwarp();
}
#endif
// 2, 4, 8 or 16 bytes of shared memory. (Compilers do not find out for themselves that an address
// which is a structure's member leads there.)
template <class T>
DEVICE T load_shared(const void* from) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(from));
    T v;
    if constexpr (sizeof(T) == 16) {
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(at));
    } else if constexpr (sizeof(T) == 8) {
        asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    } else if constexpr (sizeof(T) == 2) {
        asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
    } else {
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    }
    return v;
}
// The same address or number, of which the compiler knows nothing: what lies there, or follows from
// it, is found again and need not wait in registers.
template <class T>
DEVICE T* afresh(T* address) {
    asm volatile("" : "+l"(address));
    return address;
}
DEVICE int afresh(int number) {
    asm volatile("" : "+r"(number));
    return number;
}

// Let others have the processor, or the bus, while this thread looks again and again.
DEVICE void wait_a_moment() { __nanosleep(100); }

#endif  // FLASHMOE_EMULATED

// ------------------------------------------------------------------ both

DEVICE float infinity() { return __uint_as_float(0x7F800000U); }
DEVICE float not_a_number() { return __uint_as_float(0x7FC00000U); }

DEVICE float bf16_to_float(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

// To nearest, ties to even; NaN stays NaN.
DEVICE uint16_t float_to_bf16(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// To 11 bits, nearest, ties away from zero, as float again; NaN stays NaN.
DEVICE uint32_t round_tf32(float value) {
    return value == value ? (__float_as_uint(value) + 0x1000U) & 0xFFFFE000U : 0x7FC00000U;
}

// The element types of scales and plain weights, as the launchers number them.
enum Type : int { kF32 = 0, kF16 = 1, kBF16 = 2 };

// Element `index` of an array of such a type.
DEVICE float load_float(const void* array, int64_t index, int type) {
    if (type == kF32) return static_cast<const float*>(array)[index];
    const uint16_t bits = static_cast<const uint16_t*>(array)[index];
    return type == kF16 ? half_to_float(bits) : bf16_to_float(bits);
}

DEVICE float warp_sum(float value) {
    for (int mask = 16; mask; mask >>= 1) value += shuffle_xor(value, mask);
    return value;
}
DEVICE float warp_max(float value) {
    for (int mask = 16; mask; mask >>= 1) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

DEVICE bool warp_any(bool value) { return warp_ballot(value) != 0; }

// Over a block of up to 1,024 threads, for all of them; `room` has 32 floats of shared memory.
DEVICE float block_sum(float value, float* room) {
    value = warp_sum(value);
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) room[warp] = value;
    block_barrier();
    const int warps = (static_cast<int>(blockDim.x) + 31) / 32;
    value = warp_sum(lane < warps ? room[lane] : 0.0F);
    block_barrier();  // room may be used again
    return value;
}

DEVICE float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }
DEVICE float silu(float x) { return x * sigmoid(x); }
