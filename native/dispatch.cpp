// The choice among instruction sets, and the products over them.

#include "dispatch.h"

#ifdef FLASHMOE_X86_64
#include <cpuid.h>
#endif
#if defined(FLASHMOE_X86_64) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(FLASHMOE_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(FLASHMOE_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <new>

#include "generic.h"
#include "threads.h"

namespace flashmoe {
namespace {

// Below this many multiply-adds, some 5 us, calling a second thread costs more than it saves.
constexpr std::size_t kWorthThreads = 1 << 18;
constexpr std::align_val_t kLine{64};

#ifdef FLASHMOE_X86_64
// Not every compiler's __builtin_cpu_supports knows F16C. Its registers are AVX's.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Processors without AVX-512 have it too.
bool has_avx_vnni() {
    constexpr unsigned kAvxVnni = 1U << 4;  // leaf 7, subleaf 1, eax
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}

// The tiles' 8 KiB are not saved for a process that has not asked for it (Linux 5.16 and later).
bool has_amx() {
#ifdef __linux__
    constexpr unsigned kTile = 1U << 24, kInt8 = 1U << 25;  // leaf 7, edx
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    if ((d & kTile) == 0 || (d & kInt8) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

#ifdef FLASHMOE_ARM64
bool has_dot_product() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    return true;  // every Mac with an ARM processor
#else
    return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
    constexpr unsigned long kI8mm = 1UL << 13;  // HWCAP2_I8MM, which older headers lack
    return (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(__APPLE__)
    int has = 0;  // from the M2 on
    std::size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return false;
#endif
}
#endif

std::vector<InstructionSet> available() {
    std::vector<InstructionSet> sets;
#ifdef FLASHMOE_X86_64
    // These ask the operating system too whether it saves the wide registers (XGETBV).
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vbmi") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512 && has_amx())
        sets.push_back(
            {"amx", &avx512_kernels, &decode_avx512, &delta_avx512, &panels_amx, &draw_avx512});
    if (avx512)
        sets.push_back({"avx512", &avx512_kernels, &decode_avx512, &delta_avx512, &panels_avx512,
                        &draw_avx512});
    if (avx2 && has_avx_vnni())
        sets.push_back(
            {"avxvnni", &avx2_kernels, &decode_avx2, &delta_avx2, &panels_avxvnni, &draw_avx2});
    if (avx2)
        sets.push_back(
            {"avx2", &avx2_kernels, &decode_avx2, &delta_avx2, &panels_avx2, &draw_avx2});
#endif
#ifdef FLASHMOE_ARM64
    if (has_dot_product() && has_i8mm())
        sets.push_back({"i8mm", &neon_kernels, nullptr, nullptr, &panels_i8mm});
    if (has_dot_product()) sets.push_back({"neon", &neon_kernels, nullptr, nullptr, &panels_neon});
#endif
    sets.push_back({"generic", nullptr});
    return sets;
}

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
    static const std::vector<InstructionSet> sets = available();
    return sets;
}

int worth(std::size_t multiply_adds, int threads) {
    return multiply_adds < kWorthThreads ? 1 : threads;
}

std::shared_ptr<void> prepare(const RowKernels& kernels, const float* x, std::size_t rows,
                              const AffineMatrix& matrix) {
    const std::shared_ptr<void> memory(::operator new(kernels.prepared_bytes(rows, matrix), kLine),
                                       [](void* held) { ::operator delete(held, kLine); });
    kernels.prepare(x, rows, matrix, memory.get());
    return memory;
}

void matmul_affine(const InstructionSet& set, const float* x, std::size_t rows,
                   const AffineMatrix& matrix, float* y, int threads) {
    if (set.kernels == nullptr) return generic::matmul_affine(x, rows, matrix, y, threads);
    const RowKernels& kernels = *set.kernels;
    const std::shared_ptr<void> prepared = prepare(kernels, x, rows, matrix);
    parallel_rows(matrix.out, worth(rows * matrix.out * matrix.in, threads),
                  [&](std::size_t begin, std::size_t end, int) {
                      kernels.affine(prepared.get(), rows, matrix, begin, end, y);
                  });
}

void matmul_plain(const InstructionSet& set, const float* x, std::size_t rows,
                  const PlainMatrix& matrix, float* y, int threads) {
    if (set.kernels == nullptr) return generic::matmul_plain(x, rows, matrix, y, threads);
    parallel_rows(matrix.out, worth(rows * matrix.out * matrix.in, threads),
                  [&](std::size_t begin, std::size_t end, int) {
                      set.kernels->plain(x, rows, matrix, begin, end, y);
                  });
}

}  // namespace flashmoe
