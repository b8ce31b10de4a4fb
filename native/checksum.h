// XXH3, 64 bits, seed 0: the checksum of an expert record.
//
// Owns the hash and nothing else. Written from the public specification
// (github.com/Cyan4973/xxHash, doc/xxhash_spec.md); every length, 0 included, gives the number
// that PyPI's `xxhash.xxh3_64_intdigest` gives. No alignment is asked of `data`.

#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

std::uint64_t xxh3_64(const void* data, std::size_t size_bytes) noexcept;

}  // namespace flashmoe
