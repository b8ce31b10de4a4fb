// Averages, counts of succession, and the chances they give. Compiled without contraction: a fused
// multiply-add would make the chances depend on the machine.

#include "forecast.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace flashmoe {
namespace {

constexpr int kGrain = 8;  // of a count in a byte, so that halving keeps fractions
static_assert(kGrain * (kMemory + 2) < 256);
constexpr float kGrains = kPrior * kGrain;
constexpr float kRare = 1e-6f;  // uses a visit of an expert that is never used: no 0, no subnormals
constexpr std::size_t kFewest = 8;

float decay_of(std::size_t average) {
    static const auto decays = [] {
        std::array<float, kHalfLives.size()> made{};
        for (std::size_t i = 0; i < made.size(); ++i)
            made[i] = static_cast<float>(std::exp2(-1.0 / kHalfLives[i]));
        return made;
    }();
    return decays[average];
}

}  // namespace

void Trust::learn(double gradient) {
    value_ = std::min(std::max(value_ + kRate * gradient, 0.0), kMostTrust);
}

void Forecast::cover(std::size_t expert) {
    const std::size_t before = size();
    if (expert < before) return;
    const std::size_t count = std::max(kFewest, std::bit_ceil(expert + 1));
    forget_chances();
    std::vector<std::uint8_t> wider(count * count);
    for (std::size_t i = 0; i < before; ++i)
        std::copy_n(follows_.data() + i * before, before, wider.data() + i * count);
    follows_ = std::move(wider);
    followed_.resize(count);
    for (std::vector<float>& frequency : frequency_) frequency.resize(count, kRare);
    chances_.resize(count);
    gain_.resize(count);
}

void Forecast::seed(std::span<const double> shares) {
    if (!shares.empty()) cover(shares.size() - 1);
    for (std::size_t average = 0; average < kAverages; ++average) {
        const float visits = visits_[average] = 1.0f / (1.0f - decay_of(average));
        for (std::size_t j = 0; j < shares.size(); ++j)
            frequency_[average][j] =
                static_cast<float>(std::max(shares[j], static_cast<double>(kRare)) * visits);
    }
    forget_chances();
}

void Forecast::begin() {
    std::swap(before_, routing_);
    routing_.clear();
    for (std::size_t average = 0; average < kAverages; ++average) {
        const float decay = decay_of(average);
        for (float& frequency : frequency_[average]) frequency = frequency * decay + kRare;
        visits_[average] = visits_[average] * decay + 1.0f;
    }
}

void Forecast::add(std::span<const std::int32_t> experts) {
    if (experts.empty()) return;
    cover(static_cast<std::size_t>(*std::max_element(experts.begin(), experts.end())));
    if (!before_.empty()) learn(experts);
    for (std::vector<float>& frequency : frequency_)
        for (const std::int32_t expert : experts)
            frequency[static_cast<std::size_t>(expert)] += 1.0f;
    routing_.insert(routing_.end(), experts.begin(), experts.end());
    forget_chances();
}

const float* Forecast::chances() {
    if (!known_) predict();
    return chances_.data();
}

void Forecast::predict() {
    std::array<float, kAverages> weights{};
    for (std::size_t average = 0; average < kAverages; ++average)
        weights[average] = static_cast<float>(1.0 / kAverages) / std::max(visits_[average], 1.0f);
    const float *slow = frequency_[0].data(), *middle = frequency_[1].data(),
                *quick = frequency_[2].data();
    static_assert(kAverages == 3);
    float* often = chances_.data();
    for (std::size_t j = 0; j < size(); ++j)
        often[j] = slow[j] * weights[0] + middle[j] * weights[1] + quick[j] * weights[2];
    if (!routing_.empty()) follow_routing();
    for (std::size_t j = 0; j < size(); ++j) often[j] = std::min(often[j], 1.0f);
    known_ = true;
}

// Sharpens s, which chances_ holds, by what the routing foretells.
void Forecast::follow_routing() {
    // With x the sum over I of n(i, j) / (n(i) + kPrior): a / s = x / (|I| s) + c.
    float *gain = gain_.data(), *often = chances_.data();
    std::fill(gain_.begin(), gain_.end(), 0.0f);
    double shares = 0;
    for (const std::int32_t expert : routing_) {
        const float share = 1.0f / (followed_[static_cast<std::size_t>(expert)] + kGrains);
        shares += share;
        const std::uint8_t* counts = follows(expert);
        for (std::size_t j = 0; j < size(); ++j) gain[j] += share * static_cast<float>(counts[j]);
    }
    const float added = kGrains * static_cast<float>(shares);
    const float mean = static_cast<float>(1.0 / static_cast<double>(routing_.size()));
    const float trust = static_cast<float>(trust_->value());
    for (std::size_t j = 0; j < size(); ++j) gain[j] = (gain[j] / often[j] + added) * mean;
    for (std::size_t j = 0; j < size(); ++j) {
        gain[j] = static_cast<float>(std::log(static_cast<double>(gain[j])));
        often[j] *= static_cast<float>(std::exp(static_cast<double>(gain[j] * trust)));
    }
    gained_ = true;
}

void Forecast::learn_trust(std::span<const std::int32_t> added) {
    double weighted = 0, all = 0, found = 0;
    for (std::size_t j = 0; j < size(); ++j) {
        weighted += static_cast<double>(chances_[j]) * static_cast<double>(gain_[j]);
        all += static_cast<double>(chances_[j]);
    }
    for (const std::int32_t expert : added)
        found += static_cast<double>(gain_[static_cast<std::size_t>(expert)]);
    trust_->learn(found / static_cast<double>(added.size()) - weighted / all);
}

void Forecast::learn(std::span<const std::int32_t> added) {
    if (known_ && gained_) learn_trust(added);
    const bool first = routing_.empty();  // part of this routing
    const std::size_t count = size();  // a byte written may be anything's, for all compilers know
    for (const std::int32_t expert : before_) {
        std::uint8_t* counts = follows(expert);
        if (first) {
            std::uint8_t& followed = followed_[static_cast<std::size_t>(expert)];
            followed = static_cast<std::uint8_t>(followed + kGrain);
            if (followed > kMemory * kGrain) {
                followed = static_cast<std::uint8_t>(followed >> 1);
                for (std::size_t j = 0; j < count; ++j)
                    counts[j] = static_cast<std::uint8_t>(counts[j] >> 1);
            }
        }
        for (const std::int32_t expert_after : added)
            counts[expert_after] = static_cast<std::uint8_t>(counts[expert_after] + kGrain);
    }
}

}  // namespace flashmoe
