// The lanes of a Reader: which drive reads a request, and which of its copies.
//
// Owns queues and places; opening, reading and waiting are in io.cpp, the rules in io.h. The public
// functions take mutex_, the private ones are called with it.

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <utility>

#include "io.h"

namespace flashmoe {
namespace {

// A lane is some threads, a set of copies the bits of a word.
constexpr std::size_t kMaxLanes = 64, kMaxCopies = 64;

// The weight of the last read in what is known of a lane, and what is left of that each time the
// lane is passed over: one ten times as slow as another is tried every 2,400th time.
constexpr double kNews = 1.0 / 8, kFading = 1 - 1.0 / 1024;

// However often a drive fails, it counts as no slower than 1 MB/s.
constexpr double kSlowest = 1e-6;

}  // namespace

int Reader::add_lane(int threads) {
    const std::lock_guard joining(joining_);
    int lane;
    {
        const auto lock = this->lock();
        if (closed_) throw std::runtime_error("the reader is closed");
        if (lanes_.size() == kMaxLanes) throw std::invalid_argument("there are 64 lanes already");
        lane = static_cast<int>(lanes_.size());
        lanes_.emplace_back(threads);
    }
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this, lane] { work(lane); });
    return lane;
}

int Reader::combine(std::uint64_t begin, std::uint64_t stride,
                    const std::vector<std::vector<Location>>& records) {
    const auto lock = this->lock();
    Source source{-1, false, 0, begin, stride, {}};
    if (stride == 0 || stride % kAlignmentBytes != 0 || begin % kAlignmentBytes != 0)
        throw std::invalid_argument("begin and stride must be multiples of 4096 bytes");
    for (const std::vector<Location>& locations : records) {
        Places places;
        for (const Location& at : locations) {
            if (source_at(at.file).descriptor < 0)
                throw std::invalid_argument("a combination is made of open files");
            if (at.offset % kAlignmentBytes != 0)
                throw std::invalid_argument("offsets must be multiples of 4096 bytes");
            places.push_back({at.file, at.offset});
        }
        if (places.empty() || places.size() > kMaxCopies)
            throw std::invalid_argument("a record has from 1 to 64 places");
        source.records.push_back(std::move(places));
    }
    sources_.push_back(std::move(source));
    return static_cast<int>(sources_.size()) - 1;
}

std::vector<LaneUse> Reader::lanes() const {
    const auto lock = this->lock();
    std::vector<LaneUse> uses;
    for (const Lane& lane : lanes_) uses.push_back(lane.use);
    return uses;
}

std::vector<Failure> Reader::failures() {
    const auto lock = this->lock();
    return std::exchange(failures_, {});
}

// Where `size` bytes at an offset lie; `within` is how far into each of the places.
Reader::Places& Reader::places_of(int file, std::uint64_t offset, std::size_t size,
                                  std::uint64_t* within) {
    static_cast<void>(source_at(file));  // checks the index
    Source& source = sources_[static_cast<std::size_t>(file)];
    if (offset > static_cast<std::uint64_t>(INT64_MAX) - size)
        throw std::invalid_argument("a read ends beyond the largest file offset");
    if (source.stride == 0) {
        *within = offset;
        return source.records.front();
    }
    const std::uint64_t record = (offset - source.begin) / source.stride;
    *within = (offset - source.begin) % source.stride;
    if (offset < source.begin || record >= source.records.size() || *within + size > source.stride)
        throw std::invalid_argument("a read of a combined file must lie within one record");
    return source.records[record];
}

// Notes that a copy failed; whether another is left to be tried.
bool Reader::give_way(Ticket ticket, Request& request, ReadStatus status) {
    Place& at = request.places[request.place];
    at.failed = request.places.size() > 1;  // else it is a file, of which other parts may be sound
    request.tried |= std::uint64_t{1} << request.place;
    failures_.push_back({ticket, at.file, at.offset + request.within, status});
    return !closed_ &&
           static_cast<std::size_t>(std::popcount(request.tried)) < request.places.size();
}

// Whether a place may be read for a request: it has not failed, or all that are left have.
bool Reader::is_left(const Request& request, std::size_t place) const {
    const auto tried = [&](std::size_t i) { return (request.tried >> i & 1) != 0; };
    if (tried(place)) return false;
    if (!request.places[place].failed) return true;
    for (std::size_t i = 0; i < request.places.size(); ++i)
        if (!tried(i) && !request.places[i].failed) return false;
    return true;
}

// The place whose lane is expected to end the read first, of those that are left.
std::size_t Reader::soonest(const Request& request) {
    if (request.places.size() == 1) return 0;
    std::size_t best = 0, best_ahead = 0;
    double best_end = -1;
    for (std::size_t i = 0; i < request.places.size(); ++i) {
        if (!is_left(request, i)) continue;
        Lane& lane = lane_of(request.places[i]);
        std::size_t ahead = lane.count(State::reading) + lane.count(State::demanded);
        for (State queue : {State::hinted, State::guessed, State::idle})
            if (request.state >= queue) ahead += lane.count(queue);
        const double rounds = 1 + static_cast<double>(ahead) / lane.threads;
        const double end = lane.seconds_per_byte * rounds;
        if (best_end < 0 || end < best_end || (end == best_end && ahead < best_ahead)) {
            best = i;
            best_end = end;
            best_ahead = ahead;
        }
        lane.seconds_per_byte *= kFading;
    }
    return best;
}

void Reader::Lane::learn(double sample, bool succeeded) {
    if (!succeeded) {
        seconds_per_byte = std::min(2 * std::max(sample, seconds_per_byte), kSlowest);
        return;
    }
    seconds_per_byte += (sample - seconds_per_byte) * (seconds_per_byte == 0 ? 1 : kNews);
}

Reader::Lane& Reader::lane_of(const Place& place) {
    return lanes_[static_cast<std::size_t>(source_at(place.file).lane)];
}

void Reader::enter(Request& request, State state) {
    request.state = state;
    ++lane_of(request.places[request.place]).count(state);
}

void Reader::leave(const Request& request) {
    --lane_of(request.places[request.place]).count(request.state);
}

// Chooses the copy to be read, and puts the ticket into a queue of its lane.
void Reader::enqueue(Ticket ticket, Request& request, State state) {
    request.state = state;
    request.place = soonest(request);
    enter(request, state);
    Lane& lane = lane_of(request.places[request.place]);
    lane.queues[static_cast<std::size_t>(state)].push_back(ticket);
    lane.wake.notify_one();
}

// The ticket that a lane reads next, out of its queue; 0 if there is none. What was forgotten, or
// put into another queue meanwhile, is dropped on the way.
Ticket Reader::next(Lane& lane) {
    for (std::size_t queue = 0; queue < kQueues; ++queue) {
        const auto state = static_cast<State>(queue);
        if (state == State::guessed && !lane.takes_guessed()) return 0;
        if (state == State::idle && !(lane.takes_idle() && Clock::now() >= lane.calm_at)) return 0;
        while (!lane.queues[queue].empty()) {
            const Ticket ticket = lane.queues[queue].front();
            lane.queues[queue].pop_front();
            const auto found = requests_.find(ticket);
            if (found == requests_.end()) continue;
            const Request& request = found->second;
            if (request.state == state && &lane_of(request.places[request.place]) == &lane)
                return ticket;
        }
    }
    return 0;
}

void Reader::wait_for_work(Lane& lane, std::unique_lock<std::mutex>& lock) {
    // While another request is read, its end moves calm_at and wakes all; and who ends an idle
    // one takes the next.
    if (lane.count(State::idle) > 0 && lane.takes_idle())
        lane.wake.wait_until(lock, lane.calm_at);
    else
        lane.wake.wait(lock);
}

bool Reader::Lane::takes_guessed() const {
    return count(State::demanded) + count(State::hinted) == 0 &&
           count(State::reading) == reading_idle + reading_guessed;
}

bool Reader::Lane::takes_idle() const {
    const std::size_t most = (static_cast<std::size_t>(threads) + 1) / 2;
    return count(State::reading) == reading_idle && reading_idle < most;
}

void Reader::Lane::began(State queue) {
    if (queue == State::idle) ++reading_idle;
    if (queue == State::guessed) ++reading_guessed;
}

void Reader::Lane::wanted(State queue) {
    if (queue == State::idle) --reading_idle;
    if (queue == State::guessed) --reading_guessed;
}

void Reader::Lane::ended(State queue) {
    wanted(queue);
    if (queue == State::idle) return;
    calm_at = Clock::now() + kCalm;
    if (count(State::idle) > 0 && takes_idle())
        wake.notify_all();  // to wait for the calm
    else
        rouse();
}

void Reader::Lane::rouse() {
    if (count(State::guessed) > 0 && takes_guessed()) wake.notify_all();
}

}  // namespace flashmoe
