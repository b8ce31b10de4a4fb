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
        layer.forecast.add(rows.subspan(at, width));
    }
}

// The layer comes round; the visit before it is over and shelters nobody any more.
void Cache::visit(std::int64_t layer, std::int64_t tokens) {
    if (!routing_.empty()) {
        tell();
        make_stale(layer_);
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
    layers_[index(layer)].forecast.begin();
    make_stale(layer);
}

// Lets the forecast know what the visit has asked.
void Cache::tell() {
    if (tokens_ > 1) told_ = routing_.size();  // the forecast was told token by token
    if (told_ == routing_.size()) return;
    Layer& visited = layers_[index(layer_)];
    visited.moment = moment_;
    visited.forecast.add(std::span<const std::int32_t>(routing_).subspan(told_));
    told_ = routing_.size();
    make_stale(layer_);
}

// How many tokens choose when a layer comes round: what is to come of a chunk's sweep is all of it.
std::int64_t Cache::times(std::int64_t layer) const { return layer > layer_ ? tokens_ : 1; }

}  // namespace flashmoe
