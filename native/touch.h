// The plain read: as fast as this machine's memory gives bytes to so many threads.
//
// Computes nothing of use; it is the ceiling that the kernels are measured against.

#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

// The bitwise or of all whole 64-byte lines, eight bytes wide, so that each is really loaded.
std::uint64_t touch(const void* data, std::size_t bytes, int threads);

}  // namespace flashmoe
