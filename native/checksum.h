// XXH3, 64 bits, seed 0: the checksum of an expert record.
//
// Owns the hash and nothing else. Written from the public specification
// (github.com/Cyan4973/xxHash, doc/xxhash_spec.md); every length, 0 included, gives the number
// that PyPI's `xxhash.xxh3_64_intdigest` gives. No alignment is asked of `data`. Whole blocks go
// through AVX2 where the processor has it, unless `portable`: compilers do not find the product of
// two halves of a word by themselves.

#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

std::uint64_t xxh3_64(const void* data, std::size_t size_bytes, bool portable = false) noexcept;

namespace checksum {

constexpr std::size_t kLanes = 8;                          // 64-bit accumulators
constexpr std::size_t kStripe = 8 * kLanes;                // bytes consumed by one accumulation
constexpr std::size_t kSecret = 192;                       // bytes of secret
constexpr std::size_t kStripes = (kSecret - kStripe) / 8;  // stripes between two scrambles
constexpr std::size_t kBlock = kStripes * kStripe;         // 1,024 bytes
constexpr std::uint32_t kScramblePrime = 0x9E3779B1U;

// Moves `lanes` (8) over so many whole blocks, scrambles included; only with AVX2.
void blocks_avx2(std::uint64_t* lanes, const unsigned char* data, std::size_t blocks,
                 const unsigned char* secret) noexcept;

}  // namespace checksum

}  // namespace flashmoe
