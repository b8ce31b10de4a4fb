// Direct reads into memory that the caller owns: one request, one record, one checksum.
//
// Owns the descriptors, the two queues and the reading threads; not the destinations, which must
// outlive their requests. Knows neither records nor Python. All of it is POSIX; what differs
// between systems (O_DIRECT, F_NOCACHE) is in io.cpp.
//
// A request, by its ticket:
//
//                 promote()
//      hint queue ----------> demand queue
//          |   \                /   |
//          |    \   a thread   /    |
//  cancel()|     +-> reading <+     |cancel()
//          |            |           |
//          |            v           |       close() moves whatever is still queued straight to
//          |         finished       |       finished, as ECANCELED
//          v            | wait()    v
//       (forgotten)  (forgotten)  (forgotten)
//
// Ordering. Every transition is made under mutex_, and no state lives outside it:
// - queue -> reading takes the ticket out of its queue under mutex_. A ticket is therefore read
//   by one thread once, and cancel() returning true means that no thread has touched or will
//   touch its destination.
// - While reading, the destination belongs to the reading thread alone, without the lock. It
//   stores the last byte, verifies the checksum, and only then takes mutex_ to set `finished`.
// - wait() and done() see `finished` under mutex_, hence after every byte: whoever waits may
//   read or reuse the destination without a fence of its own.
// A request that is not waited for keeps its ticket, and its caller its destination, until
// close() or drain().
//
// Idle requests (submit_idle) wait in a queue of their own, and may be thousands. They are started
// only once nothing else has been queued or read for kCalm, so never between two layers that
// read; and half as many at once as there are threads, since a request that comes then has those
// which were started before it in its way. promote()
// and cancel() leave its ticket in that queue, where whoever meets it passes over it: both are
// O(1) in the idle ones.
//
// Threads do not survive a fork, and mutex_ may have been held at that moment: in the child every
// call but close() throws std::runtime_error before it touches mutex_, close() does nothing, and
// the destructor must not run (is_foreign() tells).

#pragma once

#include <sys/types.h>

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

enum class ReadCode : int { ok = 0, os_error = 1, short_read = 2, checksum_mismatch = 3 };

struct ReadStatus {
    ReadCode code = ReadCode::ok;
    std::uint64_t detail = 0;  // errno; bytes got; or the checksum found
};

using Ticket = std::uint64_t;

class Reader {
public:
    // `threads` is the number of reads under way at once. Throws std::system_error.
    explicit Reader(int threads);
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // A file to read from, by index. With `direct`, the page cache is bypassed where the file
    // system allows it; is_direct() tells. Throws std::system_error with the errno of open().
    int open(const std::string& path, bool direct);
    bool is_direct(int file) const;

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
    std::vector<Ticket> submit_all(int file, std::span<const Read> reads, bool demand);

    // The same into the idle queue: a read for the time in which the disk has nothing else to do.
    Ticket submit_idle(int file, std::uint64_t offset, std::span<unsigned char> destination,
                       std::uint64_t checksum);

    void promote(Ticket ticket);     // hint or idle queue -> end of demand queue; else nothing
    bool cancel(Ticket ticket);      // true: it had not started, and is forgotten
    bool done(Ticket ticket) const;  // finished: wait() will not block
    ReadStatus wait(Ticket ticket);  // blocks until finished, then forgets the ticket
    Ticket wait_any(std::span<const Ticket> tickets);  // the first of them to have finished
    // The five above throw std::out_of_range for a ticket that is unknown or forgotten.

    // Drops what is queued, waits until no thread reads, and forgets every ticket; whoever waits
    // for one gets std::out_of_range. Returns the last ticket forgotten. New ones may follow.
    Ticket drain();

    std::uint64_t bytes_read() const;  // delivered by the system, wasted ones included
    void close();                      // joins the threads; waits stay answerable
    bool is_foreign() const;           // this process was forked after the reader was made

private:
    enum class State { idle, hinted, demanded, reading, finished };
    using Clock = std::chrono::steady_clock;

    struct File {
        int descriptor;
        bool direct;
    };

    struct Request {
        File file;
        std::uint64_t offset;
        std::span<unsigned char> destination;
        std::uint64_t checksum;
        State state;
        ReadStatus status;
        std::uint64_t finished_as = 0;  // order of finishing, from 1
    };

    std::vector<Ticket> enqueue(int file, std::span<const Read> reads, State state);
    void work();
    Request* next();
    void wait_for_work(std::unique_lock<std::mutex>& lock);
    Request* next_idle();
    std::unique_lock<std::mutex> lock() const;
    std::deque<Ticket>& queue_of(State state);
    Request& find(Ticket ticket);
    const Request& find(Ticket ticket) const;
    File file_at(int file) const;
    void finish(Request& request, ReadStatus status);

    const pid_t process_;
    const int most_idle_;       // idle requests that may be read at once
    mutable std::mutex mutex_;  // guards everything down to closed_
    std::condition_variable wake_, finished_;
    std::deque<Ticket> demand_, hint_, idle_;  // idle_ also has tickets that have left it
    int reading_ = 0, reading_idle_ = 0;       // requests being read; the idle ones apart
    Clock::time_point calm_at_{};              // from then on, idle requests may be read
    std::unordered_map<Ticket, Request> requests_;
    std::vector<File> files_;
    Ticket next_ticket_ = 1;
    std::uint64_t finished_count_ = 0;
    std::uint64_t bytes_read_ = 0;
    bool closed_ = false;

    std::mutex joining_;  // guards threads_: a second close() returns only when the first has
    std::vector<std::thread> threads_;
};

}  // namespace flashmoe
