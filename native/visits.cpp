// Who is asked for, and what a forecast learns of it: visits of layers, a token's and a chunk's.

#include <algorithm>

#include "cache.h"

namespace flashmoe {
namespace {

std::size_t index(std::int64_t number) { return static_cast<std::size_t>(number); }

}  // namespace

void Cache::sweep(std::int64_t number, std::span<const std::int64_t> experts,
                  std::span<const std::int32_t> rows, std::size_t width, std::int64_t tokens) {
    check(number);
    for (const std::int64_t expert : experts) checked({number, expert});
    for (const std::int32_t expert : rows) checked({number, expert});
    visit(number, tokens);
    Layer& layer = layers_[index(number)];
    for (const std::int64_t expert : experts) {
        layer.asked[index(expert)] = visit_;
        routing_.push_back(static_cast<std::int32_t>(expert));
    }
    told_ = routing_.size();
    layer.moment = moment_;
    for (std::size_t at = 0; at < rows.size(); at += width) {
        if (at) layer.forecast.begin();
        layer.forecast.add(rows.subspan(at, width), 1.0f, false);
    }
}

// The layer comes round; the visit before it is over and shelters nobody any more.
void Cache::visit(std::int64_t layer, std::int64_t tokens) {
    if (!routing_.empty()) {
        tell();
        make_stale(layer_);
        if (tokens_ == 1) note_width(static_cast<std::int64_t>(routing_.size()));
    }
    if (tokens != tokens_ || (tokens > 1 && layer <= layer_))
        for (std::int64_t each = 0; each < layers(); ++each)
            make_stale(each);  // which of them are still to come has changed
    tokens_ = tokens;
    moment_ += (layer - layer_ - 1 + layers()) % layers() + 1;
    layer_ = layer;
    ++visit_;
    routing_.clear();
    told_ = 0;
    displacing_.clear();
    layers_[index(layer)].forecast.begin();
    make_stale(layer);
}

// A visit was so wide. Where it shows that all before were wide, mends what they taught.
void Cache::note_width(std::int64_t width) {
    const std::int64_t before = narrowest_;
    narrowest_ = before ? std::min(before, width) : width;
    if (top_k_ || !before || width * kWide >= before) return;
    const double share = static_cast<double>(width) / static_cast<double>(before);
    for (Layer& layer : layers_) layer.forecast.discount(static_cast<float>(share));
}

// How many experts one token chooses, as far as is known.
std::int64_t Cache::narrow() const {
    const auto width = static_cast<std::int64_t>(routing_.size());
    if (top_k_) return top_k_;
    return narrowest_ ? std::min(narrowest_, width) : width;
}

// Lets the forecast know what the visit has asked.
void Cache::tell() {
    if (tokens_ > 1) told_ = routing_.size();  // the forecast was told token by token
    if (told_ == routing_.size()) return;
    const std::int64_t one = narrow();
    const auto width = static_cast<std::int64_t>(routing_.size());
    const double weight = std::min(1.0, static_cast<double>(one) / static_cast<double>(width));
    Layer& visited = layers_[index(layer_)];
    visited.moment = moment_;
    visited.forecast.add(std::span<const std::int32_t>(routing_).subspan(told_),
                         static_cast<float>(weight), width > kWide * one);
    told_ = routing_.size();
    make_stale(layer_);
}

// How many tokens choose when a layer comes round: what is to come of a chunk's sweep is all of it.
std::int64_t Cache::times(std::int64_t layer) const { return layer > layer_ ? tokens_ : 1; }

}  // namespace flashmoe
