// The reading threads, and the only file that knows how a system bypasses its page cache.

#include "io.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <system_error>

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

Reader::Reader(int threads) : process_(::getpid()), most_idle_((threads + 1) / 2) {
    try {
        for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {
        close();  // the destructor does not run for a constructor that threw
        throw;
    }
}

Reader::~Reader() {
    close();
    for (const File& file : files_) ::close(file.descriptor);
}

int Reader::open(const std::string& path, bool direct) {
    int descriptor = direct ? open_direct(path) : -1;
    const bool is_direct = descriptor >= 0;
    // A path that cannot be opened at all fails here, with the plain open's errno.
    if (!is_direct) descriptor = open_plain(path);
    const auto lock = this->lock();
    files_.push_back({descriptor, is_direct});
    return static_cast<int>(files_.size()) - 1;
}

bool Reader::is_direct(int file) const {
    const auto lock = this->lock();
    return file_at(file).direct;
}

Ticket Reader::submit(int file, std::uint64_t offset, std::span<unsigned char> destination,
                      std::uint64_t checksum, bool demand) {
    const Read read{offset, destination, checksum};
    return submit_all(file, {&read, 1}, demand).front();
}

std::vector<Ticket> Reader::submit_all(int file, std::span<const Read> reads, bool demand) {
    return enqueue(file, reads, demand ? State::demanded : State::hinted);
}

Ticket Reader::submit_idle(int file, std::uint64_t offset, std::span<unsigned char> destination,
                           std::uint64_t checksum) {
    const Read read{offset, destination, checksum};
    return enqueue(file, {&read, 1}, State::idle).front();
}

std::vector<Ticket> Reader::enqueue(int file, std::span<const Read> reads, State state) {
    for (const Read& read : reads) {
        const auto address = reinterpret_cast<std::uintptr_t>(read.destination.data());
        if (address % kAlignmentBytes != 0 || read.offset % kAlignmentBytes != 0 ||
            read.destination.size() % kAlignmentBytes != 0 || read.destination.empty())
            throw std::invalid_argument(
                "address, offset and size of a read must be multiples of 4096 bytes");
        if (read.offset > static_cast<std::uint64_t>(INT64_MAX) - read.destination.size())
            throw std::invalid_argument("a read ends beyond the largest file offset");
    }
    std::vector<Ticket> tickets;
    tickets.reserve(reads.size());
    {
        const auto lock = this->lock();
        if (closed_) throw std::runtime_error("the reader is closed");
        const File source = file_at(file);
        for (const Read& read : reads) {
            const Ticket ticket = next_ticket_++;
            requests_.emplace(
                ticket, Request{source, read.offset, read.destination, read.checksum, state, {}});
            queue_of(state).push_back(ticket);
            tickets.push_back(ticket);
        }
    }
    for (std::size_t i = 0; i < tickets.size(); ++i) wake_.notify_one();
    return tickets;
}

void Reader::promote(Ticket ticket) {
    const auto lock = this->lock();
    Request& request = find(ticket);
    if (request.state != State::hinted && request.state != State::idle) return;
    if (request.state == State::hinted) std::erase(hint_, ticket);
    demand_.push_back(ticket);
    request.state = State::demanded;
    wake_.notify_one();  // an idle one may have had to wait while threads slept
}

bool Reader::cancel(Ticket ticket) {
    const auto lock = this->lock();
    const State state = find(ticket).state;
    if (state == State::reading || state == State::finished) return false;
    if (state != State::idle) std::erase(queue_of(state), ticket);
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

Ticket Reader::drain() {
    auto lock = this->lock();
    finished_.wait(lock, [this] {
        // In here, so that a request that comes while this waits is dropped too.
        for (std::deque<Ticket>* queue : {&demand_, &hint_, &idle_}) queue->clear();
        std::erase_if(requests_, [](const auto& entry) {
            const State state = entry.second.state;
            return state != State::reading && state != State::finished;
        });
        return std::ranges::none_of(
            requests_, [](const auto& entry) { return entry.second.state == State::reading; });
    });
    requests_.clear();
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
        for (std::deque<Ticket>* queue : {&demand_, &hint_, &idle_}) queue->clear();
        for (auto& [ticket, request] : requests_)
            if (request.state != State::reading && request.state != State::finished)
                finish(request, {ReadCode::os_error, ECANCELED});
    }
    wake_.notify_all();
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

void Reader::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        Request* const found = next();
        if (found == nullptr) {
            if (closed_) return;
            wait_for_work(lock);
            continue;
        }
        // References into an unordered_map survive insertions, and a ticket that is being read
        // is never erased: the request stays put while the lock is away.
        Request& request = *found;
        const bool idle = request.state == State::idle;
        request.state = State::reading;
        ++(idle ? reading_idle_ : reading_);
        lock.unlock();

        Outcome outcome =
            read_fully(request.file.descriptor, request.file.direct ? kAlignmentBytes : 1,
                       request.offset, request.destination);
        if (outcome.status.code == ReadCode::ok) {
            const std::uint64_t sum =
                xxh3_64(request.destination.data(), request.destination.size());
            if (sum != request.checksum) outcome.status = {ReadCode::checksum_mismatch, sum};
        }

        lock.lock();
        bytes_read_ += outcome.bytes;
        --(idle ? reading_idle_ : reading_);
        if (!idle) {
            calm_at_ = Clock::now() + kCalm;
            if (reading_ == 0 && !idle_.empty()) wake_.notify_all();  // to wait for the calm
        }
        finish(request, outcome.status);
    }
}

// What a thread may read now, out of its queue, or nothing.
Reader::Request* Reader::next() {
    if (demand_.empty() && hint_.empty()) return next_idle();
    std::deque<Ticket>& queue = demand_.empty() ? hint_ : demand_;
    Request& request = find(queue.front());
    queue.pop_front();
    return &request;
}

Reader::Request* Reader::next_idle() {
    if (reading_ > 0 || reading_idle_ >= most_idle_ || Clock::now() < calm_at_) return nullptr;
    while (!idle_.empty()) {
        const auto found = requests_.find(idle_.front());
        idle_.pop_front();
        if (found != requests_.end() && found->second.state == State::idle) return &found->second;
    }
    return nullptr;
}

void Reader::wait_for_work(std::unique_lock<std::mutex>& lock) {
    // While another request is read, its end moves calm_at_ and wakes all; and who ends an idle
    // one takes the next.
    if (idle_.empty() || reading_ > 0 || reading_idle_ >= most_idle_)
        wake_.wait(lock);
    else
        wake_.wait_until(lock, calm_at_);
}

std::deque<Ticket>& Reader::queue_of(State state) {
    if (state == State::idle) return idle_;
    return state == State::demanded ? demand_ : hint_;
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

Reader::File Reader::file_at(int file) const {
    if (file < 0 || static_cast<std::size_t>(file) >= files_.size())
        throw std::out_of_range("file index " + std::to_string(file) + " was never opened");
    return files_[static_cast<std::size_t>(file)];
}

void Reader::finish(Request& request, ReadStatus status) {
    request.status = status;
    request.state = State::finished;
    request.finished_as = ++finished_count_;
    finished_.notify_all();
}

}  // namespace flashmoe
