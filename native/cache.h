// Which slot holds which expert: a pure policy, no bytes and no I/O.
//
// The rules are told in src/flashmoe/stream/cache.py, its door. Owns the map from experts to slots,
// who leaves, and the pins. Does not own the chance that an expert is chosen (forecast.h), and is
// not for two threads at once.
//
// An expert is a layer and an index within it. Per layer there are flat arrays by index, which grow
// as experts appear: a call looks nothing up but by index, and an eviction compares one candidate a
// layer, of which only those are ranked anew whose layer something has happened to.
//
// Errors: std::runtime_error for a call that only a bug makes, std::invalid_argument for a number
// that nothing could be kept for. A call that throws has changed nothing.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "forecast.h"

namespace flashmoe {

// Experts of a layer are numbered below this: the counts of its forecast stay within a gibibyte.
inline constexpr std::int64_t kMostExperts = 1 << 15;

struct Key {
    std::int64_t layer, expert;
};

// The slot given to an expert, and the expert that had to leave it.
struct Admission {
    std::int32_t slot;
    std::optional<Key> evicted;
};

class Cache {
public:
    // `top_k`: how many experts of a layer a token chooses.
    Cache(std::int64_t slots, std::int64_t layers, std::int64_t top_k);
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    std::int64_t slots() const { return slots_; }
    std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }
    std::int64_t size() const { return size_; }
    std::int64_t free() const { return static_cast<std::int64_t>(free_.size()); }
    std::int64_t pinned() const { return pinned_; }
    std::int64_t resident(std::int64_t layer) const;

    // The slot of an expert, or -1; counts as a use.
    std::int32_t lookup(Key key);
    // The slot of an expert, or -1; does not count as a use.
    std::int32_t slot(Key key) const;

    // A visit of a chunk of `tokens`, which want `experts`, each once; `rows` are the choices of
    // the last of them, `width` each, oldest first. Uses of all. std::invalid_argument for an
    // expert below 0 or too large, before anything has changed.
    void sweep(std::int64_t layer, std::span<const std::int64_t> experts,
               std::span<const std::int32_t> rows, std::size_t width, std::int64_t tokens);

    // Gives an absent expert a slot, or nobody may leave for it; with a chance it is only guessed.
    std::optional<Admission> admit(Key key, std::optional<double> chance);

    std::int32_t reserve();
    void unreserve(std::int32_t slot);
    void place(Key key, std::int32_t slot);

    // How often each expert was chosen before all this, a row of `experts` for each layer.
    void seed(std::span<const double> shares, std::size_t experts);

    std::vector<std::int32_t> retire(std::int64_t count, std::int64_t least);
    void restore(std::span<const std::int32_t> slots);

    // Lets somebody else look up where experts are: in `places`, a row of `experts` a layer, which
    // outlives this. An expert is in it from reveal() on, and is taken out before its slot is
    // anybody else's; one beyond a row is never in it.
    void tell(std::span<std::int32_t> places, std::size_t experts);
    // The bytes of an expert are in its slot.
    void reveal(Key key);
    // While it is sealed nobody leaves for another.
    void seal(bool sealed) { sealed_ = sealed; }
    bool sealed() const { return sealed_; }

    bool is_pinned(Key key) const;
    void pin(Key key);
    void unpin(Key key);
    std::int32_t drop(Key key);

private:
    struct Layer {
        explicit Layer(Trust& trust) : forecast(trust) {}

        Forecast forecast;
        std::int64_t moment = 0;  // of its last visit, in visits
        std::int64_t count = 0;   // of experts that have a slot
        std::vector<std::int32_t> slot;
        std::vector<std::int32_t> pins;
        std::vector<std::uint64_t> asked;  // the visit that asked for it last
        std::vector<std::uint8_t> passed;  // was a candidate while pinned
        std::vector<float> keep;           // the chance, or kOut
        std::size_t candidate = 0;
        double chance = 0;  // of the candidate
        bool stale = false;

        void cover(std::size_t expert);
        void rank();
        double choose(std::int64_t layers, std::int64_t times);
    };

    Layer& layer_of(Key key) { return layers_[static_cast<std::size_t>(key.layer)]; }
    Layer& checked(Key key);
    void check(std::int64_t layer) const;
    void require_absent(Key key) const;
    void require_slot(std::int32_t slot) const;
    bool visiting(Key key) const;
    void make_stale(std::int64_t layer);
    void visit(std::int64_t layer, std::int64_t tokens = 1);
    std::int64_t times(std::int64_t layer) const;
    void tell();
    void settle(Key key, std::int32_t slot);
    std::optional<Key> farthest(double chance);
    std::optional<Key> sheltered() const;
    std::optional<Key> anybody();
    void remove(Key key);
    void say(Key key, std::int32_t slot);

    std::int64_t slots_, most_slots_, top_k_;
    std::int64_t size_ = 0, pinned_ = 0;
    Trust trust_;
    std::vector<Layer> layers_;
    std::span<std::int32_t> told_places_;
    std::size_t told_experts_ = 0;  // a row of these
    bool sealed_ = false;
    std::vector<double> expected_;  // when the candidate of each layer is
    std::vector<std::int32_t> free_;
    std::vector<std::int64_t> stale_;  // layers to be ranked anew
    std::int64_t moment_ = -1;
    std::int64_t layer_ = -1;            // being visited
    std::uint64_t visit_ = 0;            // its number
    std::int64_t tokens_ = 1;            // that it is for
    std::vector<std::int32_t> routing_;  // of the visit, in the order of asking
    std::size_t told_ = 0;               // of it, how many the forecast knows
};

}  // namespace flashmoe
