// Direct reads into memory that the caller owns: one request, one record, one checksum.
//
// Owns the descriptors, the lanes (four queues and some reading threads for each drive) and the
// choice among copies; not the destinations, which must outlive their requests. Knows neither
// records nor Python. All of it is POSIX; what differs between systems (O_DIRECT, F_NOCACHE) is in
// io.cpp.
//
// A request, by its ticket:
//
//                 promote()
//     other queues ---------> demand queue <---+ (or its own queue)
//          |   \                /   |          |
//          |    \   a thread   /    |          | failed, and another copy is left
//  cancel()|     +-> reading <+     |cancel()  |
//          |            | \---------|----------+
//          |            v           |       close() moves whatever is still queued straight to
//          |         finished       |       finished, as ECANCELED
//          v            | wait()    v
//       (forgotten)  (forgotten)  (forgotten)
//
// Lanes. A file belongs to the lane of its drive. Of a request's copies the one is read whose lane
// is expected to end first: by what stands before it there, and by how long that lane's last reads
// took. So drives of one speed share the work, and a slow one gets what the others cannot do
// sooner. What is known of a lane fades while it is passed over, so that it is tried again some
// time; a read that fails makes its lane look slower, lest a drive that refuses at once look quick.
// A copy that fails gives way to one that was not tried, and is not asked for that record again
// while another is left; failures() tells. A queue is a list of suggestions: a ticket whose request
// was promoted or cancelled since is dropped when its turn comes.
//
// Ordering. Every transition is made under mutex_, and no state lives outside it:
// - queue -> reading is a change of state under mutex_. A ticket is therefore read by one thread at
//   a time, and cancel() returning true means that no thread touches its destination any more.
// - While reading, the destination belongs to the reading thread alone, without the lock. It
//   stores the last byte, verifies the checksum, and only then takes mutex_ to set `finished`.
// - wait() and done() see `finished` under mutex_, hence after every byte: whoever waits may
//   read or reuse the destination without a fence of its own.
// A request that is not waited for keeps its ticket, and its caller its destination, until
// close() or drain().
//
// Guessed requests (Urgency::guessed) are for the moments between what is known to be needed: one
// is started only while nothing but guessed and idle ones is queued or read in its lane. They wait
// in the queue already then, so that the disk need not wait for anybody to think of them. One that
// is promoted while it is read counts as demanded from then on.
//
// Idle requests (submit_idle) wait in a queue of their own, and may be thousands. They are started
// only once nothing else has been queued or read in their lane for kCalm, so never between two
// layers that read; and half as many at once as there are threads, since a request that comes then
// has those which were started before it in its way.
//
// Threads do not survive a fork, and mutex_ may have been held at that moment: in the child every
// call but close() throws std::runtime_error before it touches mutex_, close() does nothing, and
// the destructor must not run (is_foreign() tells).

#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace flashmoe {

// What O_DIRECT asks of offsets, sizes and addresses on every file system met so far. Asked for
// everywhere, so that a store which works through the page cache works without it.
constexpr std::size_t kAlignmentBytes = 4096;

// After the last other request, idle ones wait so long; longer than a layer of decoding.
constexpr std::chrono::milliseconds kCalm{50};

// ok_after_failure: read and verified like ok, but a copy had failed before.
enum class ReadCode : int {
    ok = 0,
    os_error = 1,
    short_read = 2,
    checksum_mismatch = 3,
    ok_after_failure = 4
};

struct ReadStatus {
    ReadCode code = ReadCode::ok;
    std::uint64_t detail = 0;  // errno; bytes got; the checksum found; or how many copies failed
};

using Ticket = std::uint64_t;

// Which queue a request waits in: demanded ones go first, then hinted ones, each in order; guessed
// ones are started only where the drive would be idle.
enum class Urgency : int { demanded = 0, hinted = 1, guessed = 2 };

// A read that has ended.
struct Finished {
    Ticket ticket;
    ReadStatus status;
};

// A read of one copy that failed: for which ticket, of which file, where.
struct Failure {
    Ticket ticket;
    int file;
    std::uint64_t offset;
    ReadStatus status;
};

// What a lane has done: reads that ended, those of them that failed, bytes delivered.
struct LaneUse {
    std::uint64_t reads = 0, failed = 0, bytes = 0;
};

// Where something lies: an open file, by index, and an offset in it.
struct Location {
    int file;
    std::uint64_t offset;
};

class Reader {
public:
    // `threads` is the number of reads under way at once in lane 0. Throws std::system_error.
    explicit Reader(int threads);
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // One more lane, with threads of its own; its number. Throws std::system_error.
    int add_lane(int threads);

    // A file to read from, by index. With `direct`, the page cache is bypassed where the file
    // system allows it; is_direct() tells. Throws std::system_error with the errno of open().
    int open(const std::string& path, bool direct, int lane);
    bool is_direct(int file) const;  // of a combination: whether all of its files are

    // A file that is put together from others, by index: `stride` bytes from `begin + r * stride`
    // lie at any of records[r], which hold the same bytes. Throws std::invalid_argument.
    int combine(std::uint64_t begin, std::uint64_t stride,
                const std::vector<std::vector<Location>>& records);

    // Reads exactly destination.size() bytes at `offset`, then compares their XXH3-64. Offset,
    // size and address are multiples of kAlignmentBytes, else std::invalid_argument. Demanded
    // requests go before hinted ones, each queue in order. std::runtime_error once closed.
    Ticket submit(int file, std::uint64_t offset, std::span<unsigned char> destination,
                  std::uint64_t checksum, bool demand);

    struct Read {
        std::uint64_t offset;
        std::span<unsigned char> destination;
        std::uint64_t checksum;
    };
    // submit() for each, under one lock: a thread that wakes for the first does not make the
    // others wait. All are checked before any is queued.
    std::vector<Ticket> submit_all(int file, std::span<const Read> reads, Urgency urgency);

    // The same into the idle queue: a read for the time in which the disk has nothing else to do.
    Ticket submit_idle(int file, std::uint64_t offset, std::span<unsigned char> destination,
                       std::uint64_t checksum);

    void promote(Ticket ticket);     // another queue -> end of demand queue; else nothing
    bool cancel(Ticket ticket);      // true: it had not started, and is forgotten
    bool done(Ticket ticket) const;  // finished: wait() will not block
    ReadStatus wait(Ticket ticket);  // blocks until finished, then forgets the ticket
    Ticket wait_any(std::span<const Ticket> tickets);  // the first of them to have finished
    // Forgets those of some that have finished, and tells what became of each, in the order in
    // which they did; with `block` it waits until there is one, unless there is nothing to wait
    // for.
    std::vector<Finished> collect(std::span<const Ticket> tickets, bool block);
    // The six above throw std::out_of_range for a ticket that is unknown or forgotten.

    // Drops what is queued, waits until no thread reads, and forgets every ticket; whoever waits
    // for one gets std::out_of_range. Returns the last ticket forgotten. New ones may follow.
    Ticket drain();

    std::uint64_t bytes_read() const;  // delivered by the system, wasted ones included
    std::vector<LaneUse> lanes() const;
    std::vector<Failure> failures();  // those since it was last asked
    void close();                     // joins the threads; waits stay answerable
    bool is_foreign() const;          // this process was forked after the reader was made

private:
    // The queues first, in order.
    enum class State { demanded, hinted, guessed, idle, reading, finished };
    static constexpr std::size_t kQueues = 4;
    using Clock = std::chrono::steady_clock;

    struct Place {
        int file;
        std::uint64_t offset;
        bool failed = false;  // asked again only when all copies have
    };
    using Places = std::vector<Place>;

    // What an index stands for. An open file is its own only place.
    struct Source {
        int descriptor;  // -1: a combination
        bool direct;
        int lane;
        std::uint64_t begin, stride;  // 0: one record without an end
        std::vector<Places> records;
    };

    struct Request {
        Places& places;
        std::uint64_t within;  // from the beginning of each place
        std::span<unsigned char> destination;
        std::uint64_t checksum;
        State state;
        ReadStatus status;
        State queue = State::demanded;  // that it was taken out of, or would be by now
        std::size_t place = 0;          // the copy to be read
        std::uint64_t tried = 0;        // places that failed, a bit each
        std::uint64_t finished_as = 0;  // order of finishing, from 1
    };

    struct Lane {
        int threads;
        std::condition_variable wake;
        std::array<std::deque<Ticket>, kQueues> queues;
        std::array<std::size_t, kQueues + 1> requests = {};  // by state, finished ones not counted
        std::size_t reading_idle = 0, reading_guessed = 0;   // of those being read
        Clock::time_point calm_at{};  // from then on, idle requests may be read
        double seconds_per_byte = 0;  // of one read among others, lately; 0: not known
        LaneUse use;

        explicit Lane(int lane_threads) : threads(lane_threads) {}
        void learn(double sample, bool succeeded);
        void began(State queue);     // a read of a request from there
        void ended(State queue);     // the same
        void wanted(State queue);    // a read under way from there is waited for now
        void rouse();                // threads that wait for what may be read by now
        bool takes_guessed() const;  // whether nothing holds guessed requests up
        bool takes_idle() const;     // whether idle requests are held up by the calm alone
        std::size_t& count(State state) { return requests[static_cast<std::size_t>(state)]; }
        std::size_t count(State state) const { return requests[static_cast<std::size_t>(state)]; }
    };

    void work(int lane);
    std::unique_lock<std::mutex> lock() const;
    Places& places_of(int file, std::uint64_t offset, std::size_t size, std::uint64_t* within);
    const Source& source_at(int file) const;
    std::vector<Ticket> enqueue_all(int file, std::span<const Read> reads, State state);
    void enqueue(Ticket ticket, Request& request, State state);
    void enter(Request& request, State state);
    void leave(const Request& request);
    Ticket next(Lane& lane);
    void wait_for_work(Lane& lane, std::unique_lock<std::mutex>& lock);
    Lane& lane_of(const Place& place);
    std::size_t soonest(const Request& request);
    bool is_left(const Request& request, std::size_t place) const;
    Request& find(Ticket ticket);
    const Request& find(Ticket ticket) const;
    bool give_way(Ticket ticket, Request& request, ReadStatus status);
    void finish(Request& request, ReadStatus status);

    const pid_t process_;
    mutable std::mutex mutex_;  // guards everything down to closed_
    std::condition_variable finished_;
    std::deque<Lane> lanes_;  // deques: what threads and requests refer to stays where it is
    std::unordered_map<Ticket, Request> requests_;
    std::deque<Source> sources_;
    std::vector<Failure> failures_;
    Ticket next_ticket_ = 1;
    std::uint64_t finished_count_ = 0;
    std::uint64_t bytes_read_ = 0;
    bool closed_ = false;

    std::mutex joining_;  // guards threads_: a second close() returns only when the first has
    std::vector<std::thread> threads_;
};

}  // namespace flashmoe
