// How likely each expert of one layer is to be chosen when the layer next comes round.
//
// Learns from the routings alone, while they happen: how often an expert is chosen, and which
// experts follow which from one token to the next. Does not know what is in memory.
//
// The chance of expert j, given the experts I that the layer has just chosen, is
//
//     p(j) = s * (a / s) ** trust,  a = mean over i in I of (n(i, j) + kPrior * s) / (n(i) +
//     kPrior)
//
// with s(j) the share of visits that chose j, the mean of a slow to a fast average (a visit counts
// half after kHalfLives), n(i) how often i was followed by another routing of its layer and n(i, j)
// how often that one chose j, both halved whenever n(i) passes kMemory. n(i, i) is what the recency
// of a use is worth: routers differ in it, so it is measured. They differ too in how well the last
// routing foretells the next; `trust`, one number for all layers, follows the gradient of the
// log-likelihood of the routings that come, p normalised. It exceeds 1 where the experts of I agree
// more than chance has it. Origin and figures: E7 in docs/EXPERIMENTS.md.
//
// Invariants: 0 <= p <= 1; the counts of a layer take experts ** 2 bytes. Sums run in the order of
// kHalfLives and of I, in single precision, and logarithm and exponential are those of doubles,
// rounded: every machine gets the same chances, whatever its vectors and its library.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace flashmoe {

// Visits of the layer; one a token when decoding.
inline constexpr std::array<int, 3> kHalfLives{32, 8, 1};
// Routings that s is worth beside the counts of what followed an expert.
inline constexpr int kPrior = 6;
// Routings that are remembered of what followed an expert.
inline constexpr int kMemory = 24;
// Step of trust along its gradient, a visit.
inline constexpr double kRate = 0.01;
inline constexpr double kMostTrust = 4.0;

// How far the last routing foretells the next; shared by the layers of a model.
class Trust {
public:
    double value() const { return value_; }
    void learn(double gradient);

private:
    double value_ = 1.0;
};

// One layer's experts; as many as it has been told of. `trust` must outlive it.
class Forecast {
public:
    explicit Forecast(Trust& trust) : trust_(&trust) {}

    std::size_t size() const { return followed_.size(); }

    // Makes room for an expert; the arrays grow by doubling.
    void cover(std::size_t expert);

    // Begins as if the first experts had been chosen in these shares of the visits for long.
    void seed(std::span<const double> shares);

    // The layer comes round: what it chose last is followed by what add() tells.
    void begin();

    // The routing of this visit has these experts too, each once.
    void add(std::span<const std::int32_t> experts);

    // Of every expert, to be chosen when the layer next comes round; until the next call of another
    // function but begin().
    const float* chances();

private:
    static constexpr std::size_t kAverages = kHalfLives.size();

    void predict();
    void follow_routing();
    void learn(std::span<const std::int32_t> added);
    void learn_trust(std::span<const std::int32_t> added);
    void forget_chances() { known_ = gained_ = false; }
    std::uint8_t* follows(std::int32_t expert) {
        return follows_.data() + static_cast<std::size_t>(expert) * size();
    }

    Trust* trust_;
    std::array<std::vector<float>, kAverages> frequency_;
    std::array<float, kAverages> visits_{};
    std::vector<std::uint8_t> followed_;
    std::vector<std::uint8_t> follows_;  // (experts, experts)
    std::vector<std::int32_t> before_, routing_;
    bool known_ = false;   // the chances, until something is learned
    bool gained_ = false;  // they come from a routing, and gain_ is log(a / s)
    std::vector<float> chances_, gain_;
};

}  // namespace flashmoe
