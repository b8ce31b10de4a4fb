// The module `flashmoe._native`, and its reader; no file but bindings* knows Python.
//
// Owns the references that keep a destination alive while it is read into. Arithmetic is bound in
// bindings_products.cpp and bindings_decode.cpp, the cache policy in bindings_cache.cpp; what they
// bind knows nothing of Python.

#include "bindings.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checksum.h"
#include "io.h"
#include "touch.h"

namespace flashmoe::bindings {
namespace {

// Runs `work` on the bytes of a contiguous buffer, without the GIL.
template <class Work>
std::uint64_t over_bytes(nb::handle object, Work work) {
    Py_buffer view;
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
    std::uint64_t result;
    {
        const NativeWork working;
        result = work(view.buf, static_cast<std::size_t>(view.len));
    }
    PyBuffer_Release(&view);
    return result;
}

std::uint64_t xxh3_64(nb::handle object, bool portable) {
    return over_bytes(object, [portable](const void* data, std::size_t bytes) {
        return flashmoe::xxh3_64(data, bytes, portable);
    });
}

std::uint64_t touch(nb::handle object, int threads) {
    require_threads(threads);
    return over_bytes(object, [threads](const void* data, std::size_t bytes) {
        return flashmoe::touch(data, bytes, threads);
    });
}

using Destination = Array<std::uint8_t>;
using Landed = std::tuple<Ticket, int, std::uint64_t>;  // ticket, code, detail

// A Reader whose destinations cannot be collected while it may write to them. `destinations_` is
// touched with the GIL only; the reading threads never take it.
class PythonReader {
public:
    explicit PythonReader(int threads)
        : reader_(std::make_unique<Reader>((require_threads(threads), threads))) {}

    // Members are destroyed last to first, so `reader_`, declared last, joins its threads while
    // the destinations still live. In a forked child there is nobody to join: it is leaked.
    ~PythonReader() {
        if (reader_->is_foreign()) static_cast<void>(reader_.release());
    }
    PythonReader(const PythonReader&) = delete;
    PythonReader& operator=(const PythonReader&) = delete;

    int add_lane(int threads) {
        require_threads(threads);
        return reader_->add_lane(threads);
    }

    int open(nb::handle path, bool direct, int lane) {
        PyObject* encoded = nullptr;
        if (PyUnicode_FSConverter(path.ptr(), &encoded) == 0) throw nb::python_error();
        const nb::object owner = nb::steal(encoded);
        try {
            return reader_->open(PyBytes_AS_STRING(encoded), direct, lane);
        } catch (const std::system_error& error) {
            errno = error.code().value();
            PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path.ptr());
            throw nb::python_error();
        }
    }

    bool is_direct(int file) const { return reader_->is_direct(file); }

    int combine(std::uint64_t begin, std::uint64_t stride,
                const std::vector<std::vector<std::pair<int, std::uint64_t>>>& records) {
        std::vector<std::vector<flashmoe::Location>> places(records.size());
        for (std::size_t i = 0; i < records.size(); ++i)
            for (const auto& [file, offset] : records[i]) places[i].push_back({file, offset});
        return reader_->combine(begin, stride, places);
    }

    Ticket submit(int file, std::uint64_t offset, const Destination& destination,
                  std::uint64_t checksum, bool demand) {
        const Ticket ticket = reader_->submit(
            file, offset, {destination.data(), destination.size()}, checksum, demand);
        destinations_.emplace(ticket, destination);
        return ticket;
    }

    // Where the records of a file lie: r at begin + r * size, with that checksum.
    void describe(int file, std::uint64_t begin, std::uint64_t size,
                  std::vector<std::uint64_t> checksums) {
        if (file < 0) throw nb::index_error("a file index is never negative");
        const auto index = static_cast<std::size_t>(file);
        if (tables_.size() <= index) tables_.resize(index + 1);
        tables_[index] = {begin, size, std::move(checksums)};
    }

    // Records go into slots: slot s is the slot_bytes at s * slot_bytes of the arena.
    void into(const Destination& arena, std::uint64_t slot_bytes) {
        require(slot_bytes != 0 && arena.size() % slot_bytes == 0, "an arena is of whole slots");
        require(!arena_ && !closed_, "a reader has its slots once, until it is closed");
        arena_ = arena;
        slot_bytes_ = slot_bytes;
    }

    // The ticket of the first; those that follow have the next numbers.
    Ticket submit_records(int file, const std::vector<std::size_t>& records,
                          const std::vector<std::size_t>& slots, int urgency) {
        require(urgency >= 0 && urgency <= 2, "urgency is 0 (demanded), 1 (hinted) or 2 (guessed)");
        const std::vector<Reader::Read> reads = reads_of(file, records, slots);
        require(!reads.empty(), "there is nothing to be read");
        const Counted counted;
        return reader_->submit_all(file, reads, static_cast<Urgency>(urgency)).front();
    }

    Ticket submit_idle_record(int file, std::size_t record, std::size_t slot) {
        const Reader::Read read = reads_of(file, {record}, {slot}).front();
        return reader_->submit_idle(file, read.offset, read.destination, read.checksum);
    }

    Ticket submit_idle(int file, std::uint64_t offset, const Destination& destination,
                       std::uint64_t checksum) {
        const Ticket ticket =
            reader_->submit_idle(file, offset, {destination.data(), destination.size()}, checksum);
        destinations_.emplace(ticket, destination);
        return ticket;
    }

    void promote(Ticket ticket) { reader_->promote(ticket); }

    void promote_all(const std::vector<Ticket>& tickets) {
        for (const Ticket ticket : tickets) reader_->promote(ticket);
    }

    bool cancel(Ticket ticket) {
        const bool cancelled = reader_->cancel(ticket);
        if (cancelled) destinations_.erase(ticket);
        return cancelled;
    }

    bool done(Ticket ticket) const { return reader_->done(ticket); }

    std::pair<int, std::uint64_t> wait(Ticket ticket) {
        ReadStatus status;
        {
            const NativeWork working;
            status = reader_->wait(ticket);
        }
        destinations_.erase(ticket);
        return {static_cast<int>(status.code), status.detail};
    }

    Ticket wait_any(const std::vector<Ticket>& tickets) {
        const NativeWork working;
        return reader_->wait_any(tickets);
    }

    // The tickets of those that were read well, in the order of finishing, and the others.
    std::pair<std::vector<Ticket>, std::vector<Landed>> collect(std::vector<Ticket> tickets,
                                                                bool block) {
        std::pair<std::vector<Ticket>, std::vector<Landed>> landed;
        std::vector<flashmoe::Finished> finished;
        {
            const NativeWork working;
            finished = reader_->collect(tickets, block);
        }
        for (const flashmoe::Finished& read : finished) {
            destinations_.erase(read.ticket);
            if (read.status.code == ReadCode::ok)
                landed.first.push_back(read.ticket);
            else
                landed.second.emplace_back(read.ticket, static_cast<int>(read.status.code),
                                           read.status.detail);
        }
        return landed;
    }

    std::uint64_t bytes_read() const { return reader_->bytes_read(); }

    std::vector<std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>> lanes() const {
        std::vector<std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>> uses;
        for (const flashmoe::LaneUse& use : reader_->lanes())
            uses.emplace_back(use.reads, use.failed, use.bytes);
        return uses;
    }

    std::vector<std::tuple<Ticket, int, std::uint64_t, int, std::uint64_t>> failures() {
        std::vector<std::tuple<Ticket, int, std::uint64_t, int, std::uint64_t>> told;
        for (const flashmoe::Failure& failure : reader_->failures())
            told.emplace_back(failure.ticket, failure.file, failure.offset,
                              static_cast<int>(failure.status.code), failure.status.detail);
        return told;
    }

    void drain() {
        Ticket last;
        {
            const NativeWork working;
            last = reader_->drain();
        }
        // Another thread may have submitted since: its destination stays.
        std::erase_if(destinations_, [last](const auto& entry) { return entry.first <= last; });
    }

    void close() {
        {
            const NativeWork working;
            reader_->close();
        }
        destinations_.clear();  // no thread is left to write to them, and none is accepted
        arena_.reset();
        closed_ = true;
    }

private:
    struct Table {
        std::uint64_t begin = 0, size = 0;
        std::vector<std::uint64_t> checksums;
    };

    std::vector<Reader::Read> reads_of(int file, const std::vector<std::size_t>& records,
                                       const std::vector<std::size_t>& slots) const {
        if (!arena_) throw std::runtime_error("the reader is closed, or has no slots");
        const auto index = static_cast<std::size_t>(file);
        require(file >= 0 && index < tables_.size(), "the records of this file were not described");
        require(records.size() == slots.size(), "every record needs a slot");
        const Table& table = tables_[index];
        require(table.size <= slot_bytes_, "a record is larger than a slot");
        std::vector<Reader::Read> reads;
        reads.reserve(records.size());
        for (std::size_t i = 0; i < records.size(); ++i) {
            require(records[i] < table.checksums.size(), "the file has no such record");
            require(slots[i] < arena_->size() / slot_bytes_, "there is no such slot");
            reads.push_back({table.begin + records[i] * table.size,
                             {arena_->data() + slots[i] * slot_bytes_, table.size},
                             table.checksums[records[i]]});
        }
        return reads;
    }

    std::vector<Table> tables_;  // by file
    std::optional<Destination> arena_;
    std::uint64_t slot_bytes_ = 0;
    bool closed_ = false;
    std::unordered_map<Ticket, Destination> destinations_;
    std::unique_ptr<Reader> reader_;
};

}  // namespace
}  // namespace flashmoe::bindings

NB_MODULE(_native, module) {
    using namespace flashmoe::bindings;
    // An engine that a program never closes is alive when the interpreter ends; that is no fault.
    nb::set_leak_warnings(false);
    module.doc() =
        "Native arithmetic, reads and cache policy; its doors are kernels/cpu.py, "
        "kernels/scores.py, "
        "stream/direct.py and stream/cache.py.";

    bind_products(module);
    bind_decode(module);
    bind_rows(module);
    bind_draw(module);
    bind_cache(module);
    module.def("xxh3_64", &xxh3_64, "buffer"_a, "portable"_a = false);
    module.def("touch", &touch, "buffer"_a, "threads"_a);
    module.def("busy_seconds", [] { return std::chrono::duration<double>(busy).count(); });

    nb::class_<PythonReader>(module, "Reader")
        .def(nb::init<int>(), "threads"_a)
        .def("add_lane", &PythonReader::add_lane, "threads"_a)
        .def("open", &PythonReader::open, "path"_a, "direct"_a, "lane"_a = 0)
        .def("is_direct", &PythonReader::is_direct, "file"_a)
        .def("combine", &PythonReader::combine, "begin"_a, "stride"_a, "records"_a)
        .def("submit", &PythonReader::submit, "file"_a, "offset"_a, "destination"_a.noconvert(),
             "checksum"_a, "demand"_a)
        .def("describe", &PythonReader::describe, "file"_a, "begin"_a, "size"_a, "checksums"_a)
        .def("into", &PythonReader::into, "arena"_a.noconvert(), "slot_bytes"_a)
        .def("submit_records", &PythonReader::submit_records, "file"_a, "records"_a, "slots"_a,
             "urgency"_a)
        .def("submit_idle_record", &PythonReader::submit_idle_record, "file"_a, "record"_a,
             "slot"_a)
        .def("submit_idle", &PythonReader::submit_idle, "file"_a, "offset"_a,
             "destination"_a.noconvert(), "checksum"_a)
        .def("promote", &PythonReader::promote, "ticket"_a)
        .def("promote_all", &PythonReader::promote_all, "tickets"_a)
        .def("cancel", &PythonReader::cancel, "ticket"_a)
        .def("done", &PythonReader::done, "ticket"_a)
        .def("wait", &PythonReader::wait, "ticket"_a)
        .def("wait_any", &PythonReader::wait_any, "tickets"_a)
        .def("collect", &PythonReader::collect, "tickets"_a, "block"_a)
        .def_prop_ro("bytes_read", &PythonReader::bytes_read)
        .def_prop_ro("lanes", &PythonReader::lanes)
        .def("failures", &PythonReader::failures)
        .def("drain", &PythonReader::drain)
        .def("close", &PythonReader::close);
}
