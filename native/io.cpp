// The reading threads, and the only file that knows how a system bypasses its page cache.

#include "io.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "checksum.h"

namespace flashmoe {
namespace {

// Linux moves at most 0x7ffff000 bytes a call; a smaller power of two keeps chunks aligned.
constexpr std::size_t kChunkBytes = std::size_t{1} << 30;

struct Outcome {
    ReadStatus status;
    std::uint64_t bytes;  // delivered by the system
};

ssize_t pread_once(int descriptor, unsigned char* into, std::size_t size, std::uint64_t offset) {
    for (;;) {
        const ssize_t got = ::pread(descriptor, into, size, static_cast<off_t>(offset));
        if (got >= 0 || errno != EINTR) return got;
    }
}

// Fills `into` or says why not. After a partial read the next one starts at the last byte that is
// a multiple of `alignment`, since O_DIRECT refuses any other; a read that brings nothing beyond
// what is already there is the end of the file.
Outcome read_fully(int descriptor, std::size_t alignment, std::uint64_t offset,
                   std::span<unsigned char> into) {
    std::size_t have = 0;
    std::uint64_t bytes = 0;
    while (have < into.size()) {
        const std::size_t from = have - have % alignment;
        const std::size_t size = std::min(into.size() - from, kChunkBytes);
        const ssize_t got = pread_once(descriptor, into.data() + from, size, offset + from);
        if (got < 0) return {{ReadCode::os_error, static_cast<std::uint64_t>(errno)}, bytes};
        bytes += static_cast<std::uint64_t>(got);
        const std::size_t end = from + static_cast<std::size_t>(got);
        if (end <= have) return {{ReadCode::short_read, have}, bytes};
        have = end;
    }
    return {{ReadCode::ok, 0}, bytes};
}

// Some file systems accept the flag and refuse the reads, or ask for a larger alignment.
bool serves_direct_reads(int descriptor) {
    const std::unique_ptr<void, decltype(&std::free)> page(
        std::aligned_alloc(kAlignmentBytes, kAlignmentBytes), &std::free);
    if (!page) throw std::bad_alloc();
    auto* into = static_cast<unsigned char*>(page.get());
    return pread_once(descriptor, into, kAlignmentBytes, 0) >= 0 || errno != EINVAL;
}

int open_plain(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) throw std::system_error(errno, std::generic_category(), path);
    return descriptor;
}

// A descriptor that bypasses the page cache, or -1 where this file system has none.
int open_direct(const std::string& path) {
#if defined(O_DIRECT)
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (descriptor < 0) return -1;
#elif defined(F_NOCACHE)
    const int descriptor = open_plain(path);
    if (::fcntl(descriptor, F_NOCACHE, 1) != 0) {
        ::close(descriptor);
        return -1;
    }
#else
    const int descriptor = -1;
    static_cast<void>(path);
    return descriptor;
#endif
    if (serves_direct_reads(descriptor)) return descriptor;
    ::close(descriptor);
    return -1;
}

}  // namespace

Reader::Reader(int threads) : process_(::getpid()) {
    try {
        add_lane(threads);
    } catch (...) {
        close();  // the destructor does not run for a constructor that threw
        throw;
    }
}

Reader::~Reader() {
    close();
    for (const Source& source : sources_)
        if (source.descriptor >= 0) ::close(source.descriptor);
}

int Reader::open(const std::string& path, bool direct, int lane) {
    int descriptor = direct ? open_direct(path) : -1;
    const bool is_direct = descriptor >= 0;
    // A path that cannot be opened at all fails here, with the plain open's errno.
    if (!is_direct) descriptor = open_plain(path);
    const auto lock = this->lock();
    if (lane < 0 || static_cast<std::size_t>(lane) >= lanes_.size()) {
        ::close(descriptor);
        throw std::out_of_range("there is no lane " + std::to_string(lane));
    }
    const int file = static_cast<int>(sources_.size());
    sources_.push_back({descriptor, is_direct, lane, 0, 0, {{{file, 0}}}});
    return file;
}

bool Reader::is_direct(int file) const {
    const auto lock = this->lock();
    const Source& source = source_at(file);
    return source.descriptor >= 0
               ? source.direct
               : std::ranges::all_of(source.records, [this](const Places& places) {
                     return std::ranges::all_of(
                         places, [this](const Place& at) { return source_at(at.file).direct; });
                 });
}

Ticket Reader::submit(int file, std::uint64_t offset, std::span<unsigned char> destination,
                      std::uint64_t checksum, bool demand) {
    const Read read{offset, destination, checksum};
    return submit_all(file, {&read, 1}, demand ? Urgency::demanded : Urgency::hinted).front();
}

std::vector<Ticket> Reader::submit_all(int file, std::span<const Read> reads, Urgency urgency) {
    return enqueue_all(file, reads, static_cast<State>(urgency));  // the queues' order
}

Ticket Reader::submit_idle(int file, std::uint64_t offset, std::span<unsigned char> destination,
                           std::uint64_t checksum) {
    const Read read{offset, destination, checksum};
    return enqueue_all(file, {&read, 1}, State::idle).front();
}

std::vector<Ticket> Reader::enqueue_all(int file, std::span<const Read> reads, State state) {
    for (const Read& read : reads) {
        const auto address = reinterpret_cast<std::uintptr_t>(read.destination.data());
        if (address % kAlignmentBytes != 0 || read.offset % kAlignmentBytes != 0 ||
            read.destination.size() % kAlignmentBytes != 0 || read.destination.empty())
            throw std::invalid_argument(
                "address, offset and size of a read must be multiples of 4096 bytes");
    }
    const auto lock = this->lock();
    if (closed_) throw std::runtime_error("the reader is closed");
    std::vector<Request> requests;
    for (const Read& read : reads) {
        std::uint64_t within;
        Places& places = places_of(file, read.offset, read.destination.size(), &within);
        requests.push_back({places, within, read.destination, read.checksum, state, {}});
    }
    std::vector<Ticket> tickets;
    for (const Request& request : requests) {
        const Ticket ticket = next_ticket_++;
        enqueue(ticket, requests_.emplace(ticket, request).first->second, state);
        tickets.push_back(ticket);
    }
    return tickets;
}

void Reader::promote(Ticket ticket) {
    const auto lock = this->lock();
    Request& request = find(ticket);
    if (request.state == State::reading) {
        lane_of(request.places[request.place]).wanted(request.queue);
        request.queue = State::demanded;
    }
    if (request.state == State::demanded || request.state >= State::reading) return;
    leave(request);
    enqueue(ticket, request, State::demanded);
}

bool Reader::cancel(Ticket ticket) {
    const auto lock = this->lock();
    const Request& request = find(ticket);
    if (request.state == State::reading || request.state == State::finished) return false;
    leave(request);
    lane_of(request.places[request.place]).rouse();
    requests_.erase(ticket);
    // A thread that waits for this ticket must learn that it is gone.
    finished_.notify_all();
    return true;
}

bool Reader::done(Ticket ticket) const {
    const auto lock = this->lock();
    return find(ticket).state == State::finished;
}

ReadStatus Reader::wait(Ticket ticket) {
    auto lock = this->lock();
    finished_.wait(lock, [&] { return find(ticket).state == State::finished; });
    const ReadStatus status = find(ticket).status;
    requests_.erase(ticket);
    return status;
}

Ticket Reader::wait_any(std::span<const Ticket> tickets) {
    if (tickets.empty()) throw std::invalid_argument("wait_any was given no ticket");
    auto lock = this->lock();
    Ticket first = 0;
    finished_.wait(lock, [&] {
        std::uint64_t earliest = UINT64_MAX;
        for (const Ticket ticket : tickets) {
            const Request& request = find(ticket);
            if (request.state == State::finished && request.finished_as < earliest) {
                earliest = request.finished_as;
                first = ticket;
            }
        }
        return first != 0;
    });
    return first;
}

std::vector<Finished> Reader::collect(std::span<const Ticket> tickets, bool block) {
    auto lock = this->lock();
    const auto landed = [&](Ticket ticket) { return find(ticket).state == State::finished; };
    if (block && !tickets.empty())
        finished_.wait(lock, [&] { return std::ranges::any_of(tickets, landed); });
    std::vector<std::pair<std::uint64_t, Finished>> found;
    for (const Ticket ticket : tickets)
        if (landed(ticket))
            found.push_back({find(ticket).finished_as, {ticket, find(ticket).status}});
    std::ranges::sort(found, {}, [](const auto& each) { return each.first; });
    std::vector<Finished> finished;
    for (const auto& [order, each] : found) {
        requests_.erase(each.ticket);
        finished.push_back(each);
    }
    return finished;
}

Ticket Reader::drain() {
    auto lock = this->lock();
    finished_.wait(lock, [this] {
        // In here, so that a request that comes while this waits is dropped too.
        std::erase_if(requests_, [this](const auto& entry) {
            const bool queued = entry.second.state < State::reading;
            if (queued) leave(entry.second);
            return queued;
        });
        return std::ranges::none_of(
            requests_, [](const auto& entry) { return entry.second.state == State::reading; });
    });
    requests_.clear();
    for (Lane& lane : lanes_)
        for (std::deque<Ticket>& queue : lane.queues) queue.clear();
    finished_.notify_all();
    return next_ticket_ - 1;
}

std::uint64_t Reader::bytes_read() const {
    const auto lock = this->lock();
    return bytes_read_;
}

void Reader::close() {
    if (is_foreign()) return;
    {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        for (auto& [ticket, request] : requests_)
            if (request.state < State::reading) {
                leave(request);
                finish(request, {ReadCode::os_error, ECANCELED});
            }
        for (Lane& lane : lanes_) lane.wake.notify_all();
    }
    const std::lock_guard lock(joining_);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

bool Reader::is_foreign() const { return ::getpid() != process_; }

std::unique_lock<std::mutex> Reader::lock() const {
    if (is_foreign())
        throw std::runtime_error(
            "this reader was opened before the process forked, and its threads did not come "
            "along: open the store again in the child");
    return std::unique_lock(mutex_);
}

void Reader::work(int number) {
    std::unique_lock lock(mutex_);
    Lane& lane = lanes_[static_cast<std::size_t>(number)];
    for (;;) {
        Ticket ticket = 0;
        while ((ticket = next(lane)) == 0) {
            if (closed_) return;
            wait_for_work(lane, lock);
        }
        // References into an unordered_map survive insertions, and a ticket that is being read
        // is never erased: the request stays put while the lock is away.
        Request& request = find(ticket);
        request.queue = request.state;
        leave(request);
        enter(request, State::reading);
        lane.began(request.queue);
        const Place& place = request.places[request.place];
        const Source& file = source_at(place.file);
        const std::uint64_t offset = place.offset + request.within;
        lock.unlock();

        const auto began = std::chrono::steady_clock::now();
        Outcome outcome = read_fully(file.descriptor, file.direct ? kAlignmentBytes : 1, offset,
                                     request.destination);
        if (outcome.status.code == ReadCode::ok) {
            const std::uint64_t sum =
                xxh3_64(request.destination.data(), request.destination.size());
            if (sum != request.checksum) outcome.status = {ReadCode::checksum_mismatch, sum};
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;

        lock.lock();
        bytes_read_ += outcome.bytes;
        leave(request);
        lane.ended(request.queue);
        lane.learn(took.count() / static_cast<double>(request.destination.size()),
                   outcome.status.code == ReadCode::ok);
        lane.use.bytes += outcome.bytes;
        ++lane.use.reads;
        if (outcome.status.code != ReadCode::ok) {
            ++lane.use.failed;
            if (give_way(ticket, request, outcome.status)) {
                enqueue(ticket, request, request.queue);
                finished_.notify_all();  // drain() waits for the end of the reads under way
                continue;
            }
        } else if (request.tried != 0) {
            const auto failed = static_cast<std::uint64_t>(std::popcount(request.tried));
            outcome.status = {ReadCode::ok_after_failure, failed};
        }
        finish(request, outcome.status);
    }
}

const Reader::Request& Reader::find(Ticket ticket) const {
    const auto found = requests_.find(ticket);
    if (found == requests_.end())
        throw std::out_of_range("ticket " + std::to_string(ticket) + " is unknown or forgotten");
    return found->second;
}

Reader::Request& Reader::find(Ticket ticket) {
    return const_cast<Request&>(static_cast<const Reader*>(this)->find(ticket));
}

const Reader::Source& Reader::source_at(int file) const {
    if (file < 0 || static_cast<std::size_t>(file) >= sources_.size())
        throw std::out_of_range("file index " + std::to_string(file) + " was never opened");
    return sources_[static_cast<std::size_t>(file)];
}

void Reader::finish(Request& request, ReadStatus status) {
    request.status = status;
    request.state = State::finished;
    request.finished_as = ++finished_count_;
    finished_.notify_all();
}

}  // namespace flashmoe
