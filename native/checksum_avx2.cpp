// The long part of XXH3-64 with AVX2: eight lanes in two registers.

#include <immintrin.h>

#include "checksum.h"

namespace flashmoe::checksum {
namespace {

constexpr std::size_t kAhead = 2048;  // bytes; records come from memory, where a disk put them

struct Lanes {
    __m256i low, high;  // lanes 0 to 3 and 4 to 7
};

inline __m256i load(const void* at) noexcept {
    return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}

inline __m256i mixed(__m256i lanes, const unsigned char* data,
                     const unsigned char* secret) noexcept {
    const __m256i words = load(data), keyed = _mm256_xor_si256(words, load(secret));
    const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
    const __m256i neighbours = _mm256_shuffle_epi32(words, _MM_SHUFFLE(1, 0, 3, 2));
    return _mm256_add_epi64(lanes, _mm256_add_epi64(product, neighbours));
}

inline void accumulate(Lanes& lanes, const unsigned char* stripe,
                       const unsigned char* secret) noexcept {
    lanes.low = mixed(lanes.low, stripe, secret);
    lanes.high = mixed(lanes.high, stripe + 32, secret + 32);
}

inline __m256i scrambled(__m256i lanes, const unsigned char* secret) noexcept {
    const __m256i prime = _mm256_set1_epi64x(kScramblePrime);
    const __m256i shifted = _mm256_xor_si256(lanes, _mm256_srli_epi64(lanes, 47));
    const __m256i keyed = _mm256_xor_si256(shifted, load(secret));
    const __m256i upper = _mm256_mul_epu32(_mm256_srli_epi64(keyed, 32), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(keyed, prime), _mm256_slli_epi64(upper, 32));
}

}  // namespace

void blocks_avx2(std::uint64_t* lanes, const unsigned char* data, std::size_t blocks,
                 const unsigned char* secret) noexcept {
    Lanes held{load(lanes), load(lanes + 4)};
    const unsigned char* last = secret + kSecret - kStripe;
    for (std::size_t block = 0; block < blocks; ++block, data += kBlock) {
        for (std::size_t n = 0; n < kStripes; ++n) {
            __builtin_prefetch(data + kStripe * n + kAhead);
            accumulate(held, data + kStripe * n, secret + 8 * n);
        }
        held = {scrambled(held.low, last), scrambled(held.high, last + 32)};
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), held.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes + 4), held.high);
}

}  // namespace flashmoe::checksum
