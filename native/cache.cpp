// The map, the pins, and who leaves.

#include "cache.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <limits>
#include <stdexcept>
#include <string>

namespace flashmoe {
namespace {

constexpr double kFloor = 1e-4;   // of a chance: the farthest expected use is finite, and ties
                                  // go to the sweep
constexpr float kOut = 2.0f;      // above every chance: not to be evicted
constexpr double kNobody = -1.0;  // before every moment
constexpr std::size_t kFewest = 8;
constexpr std::int64_t kMostSlots = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostLayers = 1 << 16;

std::string name(Key key) {
    return "expert (" + std::to_string(key.layer) + ", " + std::to_string(key.expert) + ")";
}

std::size_t index(std::int64_t expert) { return static_cast<std::size_t>(expert); }

// Where the least is first; the values are a whole number of kFewest. Lanes of their own, since one
// running minimum would wait for itself at every step.
std::size_t least_of(const std::vector<float>& values) {
    std::array<float, kFewest> lanes;
    lanes.fill(kOut);
    for (std::size_t i = 0; i < values.size(); i += kFewest)
        for (std::size_t lane = 0; lane < kFewest; ++lane)
            lanes[lane] = values[i + lane] < lanes[lane] ? values[i + lane] : lanes[lane];
    const float least = *std::min_element(lanes.begin(), lanes.end());
    return index(std::find(values.begin(), values.end(), least) - values.begin());
}

}  // namespace

void Cache::Layer::cover(std::size_t expert) {
    if (expert < slot.size()) return;
    const std::size_t count = std::max(kFewest, std::bit_ceil(expert + 1));
    slot.resize(count, -1);
    pins.resize(count);
    asked.resize(count);
    passed.resize(count);
    keep.resize(count, kOut);
}

// Takes up new chances.
void Cache::Layer::rank() {
    const float* chances = forecast.chances();
    const std::size_t count = std::min(forecast.size(), keep.size());
    for (std::size_t i = 0; i < count; ++i) {
        const float likely = chances[i];  // read in any case: no branch to foretell
        keep[i] = slot[i] >= 0 ? likely : kOut;
    }
}

// The candidate, and the moment of its expected use, or kNobody where there is none. The layer's
// next visit is for `times` tokens.
double Cache::Layer::choose(std::int64_t layers, std::int64_t times) {
    if (keep.empty()) return kNobody;
    candidate = least_of(keep);
    if (candidate == keep.size()) return kNobody;  // a chance that is no number
    if (keep[candidate] == kOut) return kNobody;
    chance = std::min(static_cast<double>(keep[candidate]) * static_cast<double>(times), 1.0);
    return static_cast<double>(layers + moment) +
           static_cast<double>(layers) / std::max(chance, kFloor);
}

Cache::Cache(std::int64_t slots, std::int64_t layers, std::int64_t top_k)
    : slots_(slots), most_slots_(slots), top_k_(top_k) {
    if (slots < 1 || layers < 1 || slots > kMostSlots || layers > kMostLayers)
        throw std::invalid_argument("a cache of " + std::to_string(slots) + " slots for " +
                                    std::to_string(layers) + " layers holds nothing");
    if (top_k < 1 || top_k > kMostExperts)
        throw std::invalid_argument("no token chooses " + std::to_string(top_k) + " experts");
    layers_.reserve(index(layers));
    stale_.reserve(index(layers));
    for (std::int64_t layer = 0; layer < layers; ++layer) {
        layers_.emplace_back(trust_);
        layers_.back().moment = layer - layers;
    }
    expected_.assign(index(layers), kNobody);
    free_.reserve(index(slots));
    for (std::int64_t slot = slots; slot-- > 0;)  // the lowest leaves first
        free_.push_back(static_cast<std::int32_t>(slot));
}

std::int64_t Cache::resident(std::int64_t layer) const {
    check(layer);
    return layers_[index(layer)].count;
}

std::int32_t Cache::lookup(Key key) {
    Layer& layer = checked(key);
    if (key.layer != layer_ || layer.asked[index(key.expert)] == visit_) visit(key.layer);
    layer.asked[index(key.expert)] = visit_;
    routing_.push_back(static_cast<std::int32_t>(key.expert));
    return layer.slot[index(key.expert)];
}

std::int32_t Cache::slot(Key key) const {
    if (key.layer < 0 || key.layer >= layers()) return -1;
    const std::vector<std::int32_t>& slot = layers_[index(key.layer)].slot;
    return key.expert >= 0 && index(key.expert) < slot.size() ? slot[index(key.expert)] : -1;
}

std::optional<Admission> Cache::admit(Key key, std::optional<double> chance) {
    require_absent(key);
    Layer& layer = checked(key);
    std::optional<Key> evicted;
    if (free_.empty()) {
        if (sealed_) return std::nullopt;
        evicted = chance || tokens_ > 1 ? farthest(chance.value_or(1.0)) : anybody();
        if (!evicted) return std::nullopt;
    }
    layer.forecast.cover(index(key.expert));  // what may fail for want of memory fails here
    if (evicted) remove(*evicted);
    const std::int32_t slot = free_.back();
    free_.pop_back();
    settle(key, slot);
    if (visiting(key) ? tokens_ > 1 : chance.has_value())
        layer.passed[index(key.expert)] = 1;  // ranked once it is unpinned
    else if (!visiting(key))
        make_stale(key.layer);
    return Admission{slot, evicted};
}

std::int32_t Cache::reserve() {
    if (free_.empty()) throw std::out_of_range("no slot is free to be reserved");
    const std::int32_t slot = free_.back();
    free_.pop_back();
    return slot;
}

void Cache::place(Key key, std::int32_t slot) {
    require_absent(key);
    checked(key);
    settle(key, slot);
    make_stale(key.layer);
}

void Cache::seed(std::span<const double> shares, std::size_t experts) {
    if (experts > static_cast<std::size_t>(kMostExperts))
        throw std::invalid_argument("shares of " + std::to_string(experts) + " experts a layer");
    const std::size_t rows = experts ? shares.size() / experts : 0;
    if (rows > layers_.size())
        throw std::invalid_argument("shares of " + std::to_string(rows) +
                                    " layers for a cache of " + std::to_string(layers()));
    for (const double share : shares)
        if (!(share >= 0 && share <= 1))
            throw std::invalid_argument("a share is a number from 0 to 1");
    for (std::size_t layer = 0; layer < rows; ++layer) {
        layers_[layer].forecast.seed(shares.subspan(layer * experts, experts));
        make_stale(static_cast<std::int64_t>(layer));
    }
}

std::vector<std::int32_t> Cache::retire(std::int64_t count, std::int64_t least) {
    const std::int64_t most = std::max<std::int64_t>(slots_ - least, 0);
    for (std::int64_t i = 0; i < std::min(count, most) && !sealed_; ++i) {
        const std::optional<Key> leaving = anybody();
        if (!leaving) break;
        remove(*leaving);
    }
    const std::int64_t taking = std::min(most, free());
    const auto end = free_.begin() + taking;  // those that would be used last
    const std::vector<std::int32_t> taken(free_.begin(), end);
    free_.erase(free_.begin(), end);
    slots_ -= taking;
    return taken;
}

void Cache::unreserve(std::int32_t slot) {
    require_slot(slot);
    free_.push_back(slot);
}

void Cache::restore(std::span<const std::int32_t> slots) {
    for (const std::int32_t slot : slots) require_slot(slot);
    free_.insert(free_.end(), slots.begin(), slots.end());
    slots_ += static_cast<std::int64_t>(slots.size());
}

void Cache::tell(std::span<std::int32_t> places, std::size_t experts) {
    told_places_ = places;
    told_experts_ = experts;
}

void Cache::reveal(Key key) {
    if (const std::int32_t found = slot(key); found >= 0) say(key, found);
}

// Others read it at any time, and must find the bytes that it speaks of.
void Cache::say(Key key, std::int32_t slot) {
    const std::size_t place = index(key.layer) * told_experts_ + index(key.expert);
    if (index(key.expert) >= told_experts_ || place >= told_places_.size()) return;
    std::atomic_ref(told_places_[place]).store(slot, std::memory_order_seq_cst);
}

void Cache::pin(Key key) {
    if (slot(key) < 0) throw std::runtime_error(name(key) + " has no slot to be pinned in");
    if (!layer_of(key).pins[index(key.expert)]++) ++pinned_;
}

void Cache::unpin(Key key) {
    if (!is_pinned(key)) throw std::runtime_error(name(key) + " is not pinned");
    Layer& layer = layer_of(key);
    if (--layer.pins[index(key.expert)]) return;
    --pinned_;
    if (layer.passed[index(key.expert)]) {
        layer.passed[index(key.expert)] = 0;
        make_stale(key.layer);
    }
}

std::int32_t Cache::drop(Key key) {
    if (is_pinned(key)) throw std::runtime_error(name(key) + " is pinned and cannot be dropped");
    const std::int32_t found = slot(key);
    if (found < 0) throw std::runtime_error(name(key) + " has no slot to be dropped from");
    make_stale(key.layer);
    remove(key);
    return found;
}

Cache::Layer& Cache::checked(Key key) {
    check(key.layer);
    if (key.expert < 0 || key.expert >= kMostExperts)
        throw std::invalid_argument(name(key) + " is not from 0 to " +
                                    std::to_string(kMostExperts - 1));
    Layer& layer = layer_of(key);
    layer.cover(index(key.expert));
    return layer;
}

void Cache::check(std::int64_t layer) const {
    if (layer < 0 || layer >= layers())
        throw std::runtime_error("layer " + std::to_string(layer) + " lies outside the " +
                                 std::to_string(layers()) + " layers");
}

void Cache::require_slot(std::int32_t slot) const {
    if (slot < 0 || slot >= most_slots_ || std::ranges::find(free_, slot) != free_.end())
        throw std::invalid_argument("slot " + std::to_string(slot) + " was not given out");
}

void Cache::require_absent(Key key) const {
    if (const std::int32_t found = slot(key); found >= 0)
        throw std::runtime_error(name(key) + " already has slot " + std::to_string(found));
}

bool Cache::visiting(Key key) const {
    return key.layer == layer_ && layers_[index(layer_)].asked[index(key.expert)] == visit_;
}

bool Cache::is_pinned(Key key) const {
    return slot(key) >= 0 && layers_[index(key.layer)].pins[index(key.expert)] > 0;
}

void Cache::make_stale(std::int64_t layer) {
    bool& stale = layers_[index(layer)].stale;
    if (!stale) stale_.push_back(layer);
    stale = true;
}

void Cache::settle(Key key, std::int32_t slot) {
    Layer& layer = layer_of(key);
    layer.forecast.cover(index(key.expert));
    layer.slot[index(key.expert)] = slot;
    ++layer.count;
    ++size_;
}

std::optional<Key> Cache::anybody() {
    const std::optional<Key> found = farthest(1.0);
    return found ? found : sheltered();
}

// The unpinned expert outside this visit whose expected use is farthest ahead; nobody where there
// is none, or where it is used with more than this chance.
std::optional<Key> Cache::farthest(double chance) {
    if (static_cast<std::int64_t>(routing_.size()) >= top_k_)
        tell();  // before that, more of this layer may be looked up, and be in memory
    for (const std::int64_t number : stale_) {
        Layer& layer = layers_[index(number)];
        layer.rank();
        if (number == layer_ && tokens_ == 1)
            for (const std::int32_t expert : routing_) layer.keep[index(expert)] = kOut;
        expected_[index(number)] = layer.choose(layers(), times(number));
        layer.stale = false;
    }
    stale_.clear();
    for (;;) {
        const auto last = std::max_element(expected_.begin(), expected_.end());
        if (*last == kNobody) return std::nullopt;
        const std::int64_t number = last - expected_.begin();
        Layer& layer = layers_[index(number)];
        if (layer.chance > chance) return std::nullopt;
        const Key key{number, static_cast<std::int64_t>(layer.candidate)};
        layer.keep[layer.candidate] = kOut;
        *last = layer.choose(layers(), times(number));
        if (!is_pinned(key)) return key;
        layer.passed[index(key.expert)] = 1;
    }
}

// The unpinned expert of this visit that was asked for first.
std::optional<Key> Cache::sheltered() const {
    for (const std::int32_t expert : routing_) {
        const Key key{layer_, expert};
        if (slot(key) >= 0 && !is_pinned(key)) return key;
    }
    return std::nullopt;
}

// Takes an expert out of its slot, which is free then.
void Cache::remove(Key key) {
    Layer& layer = layer_of(key);
    say(key, -1);
    free_.push_back(layer.slot[index(key.expert)]);
    layer.slot[index(key.expert)] = -1;
    --layer.count;
    --size_;
}

}  // namespace flashmoe
