// XXH3-64 with the default secret and seed 0. Section names are those of the specification.

#include "checksum.h"

#include <bit>
#include <cstring>

namespace flashmoe {
namespace {

static_assert(std::endian::native == std::endian::little,
              "XXH3 reads little-endian words, and so does every format this project stores");

using u8 = unsigned char;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
__extension__ using u128 = unsigned __int128;

using checksum::kBlock;
using checksum::kLanes;
using checksum::kSecret;
using checksum::kStripe;
using checksum::kStripes;

constexpr u64 kPrime32_1 = checksum::kScramblePrime;
constexpr u64 kPrime32_2 = 0x85EBCA77U;
constexpr u64 kPrime32_3 = 0xC2B2AE3DU;
constexpr u64 kPrime64_1 = 0x9E3779B185EBCA87ULL;
constexpr u64 kPrime64_2 = 0xC2B2AE3D27D4EB4FULL;
constexpr u64 kPrime64_3 = 0x165667B19E3779F9ULL;
constexpr u64 kPrime64_4 = 0x85EBCA77C2B2AE63ULL;
constexpr u64 kPrime64_5 = 0x27D4EB2F165667C5ULL;
constexpr u64 kPrimeMx1 = 0x165667919E3779F9ULL;
constexpr u64 kPrimeMx2 = 0x9FB21C651E98DF25ULL;

constexpr u8 kSecretBytes[kSecret] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

inline u32 word32(const u8* at) noexcept {
    u32 value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

inline u64 word64(const u8* at) noexcept {
    u64 value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

inline u64 secret64(std::size_t offset) noexcept { return word64(kSecretBytes + offset); }

inline u64 swap64(u64 value) noexcept {
    u64 swapped = 0;
    for (int i = 0; i < 8; ++i) swapped |= ((value >> (8 * i)) & 0xff) << (56 - 8 * i);
    return swapped;
}

inline u64 fold(u64 a, u64 b) noexcept {  // low half xor high half of the 128-bit product
    const u128 product = static_cast<u128>(a) * b;
    return static_cast<u64>(product) ^ static_cast<u64>(product >> 64);
}

inline u64 avalanche(u64 x) noexcept {
    x = (x ^ (x >> 37)) * kPrimeMx1;
    return x ^ (x >> 32);
}

inline u64 avalanche_xxh64(u64 x) noexcept {
    x = (x ^ (x >> 33)) * kPrime64_2;
    x = (x ^ (x >> 29)) * kPrime64_3;
    return x ^ (x >> 32);
}

inline u64 mix(const u8* data, std::size_t secret) noexcept {  // mixStep: 16 bytes
    return fold(word64(data) ^ secret64(secret), word64(data + 8) ^ secret64(secret + 8));
}

u64 small(const u8* data, std::size_t size) noexcept {  // 0 to 16 bytes
    if (size == 0) return avalanche_xxh64(secret64(56) ^ secret64(64));
    if (size <= 3) {
        const u32 combined = data[size - 1] | static_cast<u32>(size << 8) |
                             static_cast<u32>(data[0]) << 16 |
                             static_cast<u32>(data[size / 2]) << 24;
        return avalanche_xxh64((word32(kSecretBytes) ^ word32(kSecretBytes + 4)) ^
                               static_cast<u64>(combined));
    }
    if (size <= 8) {
        const u64 combined = word32(data + size - 4) | static_cast<u64>(word32(data)) << 32;
        u64 value = (secret64(8) ^ secret64(16)) ^ combined;
        value = (value ^ std::rotl(value, 49) ^ std::rotl(value, 24)) * kPrimeMx2;
        value = (value ^ ((value >> 35) + size)) * kPrimeMx2;
        return value ^ (value >> 28);
    }
    const u64 low = (secret64(24) ^ secret64(32)) ^ word64(data);
    const u64 high = (secret64(40) ^ secret64(48)) ^ word64(data + size - 8);
    return avalanche(size + swap64(low) + high + fold(low, high));
}

u64 medium(const u8* data, std::size_t size) noexcept {  // 17 to 240 bytes
    u64 sum = size * kPrime64_1;
    if (size <= 128) {
        for (std::size_t i = (size - 1) / 32 + 1; i-- > 0;) {
            sum += mix(data + 16 * i, 32 * i);
            sum += mix(data + size - 16 * i - 16, 32 * i + 16);
        }
        return avalanche(sum);
    }
    for (std::size_t i = 0; i < 8; ++i) sum += mix(data + 16 * i, 16 * i);
    sum = avalanche(sum);
    for (std::size_t i = 8; i < size / 16; ++i) sum += mix(data + 16 * i, 16 * (i - 8) + 3);
    return avalanche(sum + mix(data + size - 16, 119));
}

// Even and odd lanes lie apart: "add the neighbour's word" is then a plain loop over one array
// for each half, which compilers vectorise without a shuffle of the accumulators.
struct Accumulators {
    u64 even[kLanes / 2] = {kPrime32_3, kPrime64_2, kPrime64_4, kPrime64_5};
    u64 odd[kLanes / 2] = {kPrime64_1, kPrime64_3, kPrime32_2, kPrime32_1};
};

inline u64 halves(u64 value) noexcept { return (value & 0xffffffffU) * (value >> 32); }

inline void accumulate(Accumulators& acc, const u8* stripe, const u8* secret) noexcept {
    for (std::size_t i = 0; i < kLanes / 2; ++i) {
        const u64 first = word64(stripe + 16 * i);
        const u64 second = word64(stripe + 16 * i + 8);
        acc.even[i] += second + halves(first ^ word64(secret + 16 * i));
        acc.odd[i] += first + halves(second ^ word64(secret + 16 * i + 8));
    }
}

inline void scramble(Accumulators& acc) noexcept {
    const u8* secret = kSecretBytes + kSecret - kStripe;
    for (std::size_t i = 0; i < kLanes / 2; ++i) {
        u64& even = acc.even[i];
        u64& odd = acc.odd[i];
        even = (even ^ (even >> 47) ^ word64(secret + 16 * i)) * kPrime32_1;
        odd = (odd ^ (odd >> 47) ^ word64(secret + 16 * i + 8)) * kPrime32_1;
    }
}

// Moves on over whole blocks with vectors; false, and nothing done, where there are none.
#ifdef FLASHMOE_X86_64
bool accumulate_wide(Accumulators& acc, const u8* data, std::size_t blocks) noexcept {
    static const bool has_avx2 = (__builtin_cpu_init(), __builtin_cpu_supports("avx2"));
    if (!has_avx2) return false;
    u64 lanes[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) lanes[i] = (i % 2 ? acc.odd : acc.even)[i / 2];
    checksum::blocks_avx2(lanes, data, blocks, kSecretBytes);
    for (std::size_t i = 0; i < kLanes; ++i) (i % 2 ? acc.odd : acc.even)[i / 2] = lanes[i];
    return true;
}
#else
bool accumulate_wide(Accumulators&, const u8*, std::size_t) noexcept { return false; }
#endif

u64 large(const u8* data, std::size_t size, bool portable) noexcept {  // 241 bytes and more
    Accumulators acc;
    const u8* block = data;
    std::size_t left = size;
    const std::size_t whole = (size - 1) / kBlock;  // the last one has its own way
    if (!portable && accumulate_wide(acc, data, whole)) {
        block += whole * kBlock;
        left -= whole * kBlock;
    }
    for (; left > kBlock; block += kBlock, left -= kBlock) {
        for (std::size_t n = 0; n < kStripes; ++n)
            accumulate(acc, block + kStripe * n, kSecretBytes + 8 * n);
        scramble(acc);
    }
    for (std::size_t n = 0; n < (left - 1) / kStripe; ++n)
        accumulate(acc, block + kStripe * n, kSecretBytes + 8 * n);
    accumulate(acc, data + size - kStripe, kSecretBytes + kSecret - 71);

    u64 result = size * kPrime64_1;
    for (std::size_t i = 0; i < kLanes / 2; ++i) {
        const std::size_t secret = 11 + 16 * i;
        result += fold(acc.even[i] ^ secret64(secret), acc.odd[i] ^ secret64(secret + 8));
    }
    return avalanche(result);
}

}  // namespace

u64 xxh3_64(const void* data, std::size_t size_bytes, bool portable) noexcept {
    const u8* bytes = static_cast<const u8*>(data);
    if (size_bytes <= 16) return small(bytes, size_bytes);
    return size_bytes <= 240 ? medium(bytes, size_bytes) : large(bytes, size_bytes, portable);
}

}  // namespace flashmoe
