// The module `flashmoe._native`: the only file that knows Python.
//
// Owns the checks that keep a wrong argument from becoming a wild pointer, the references that
// keep a destination alive while it is read into, and the release of the GIL around all work.
// Arithmetic and reads themselves know nothing of it.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <system_error>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "checksum.h"
#include "dispatch.h"
#include "io.h"
#include "kernels.h"
#include "touch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using flashmoe::Reader;
using flashmoe::Scalar;
using flashmoe::Ticket;

constexpr int kMaxThreads = 1024;

template <class Type, class... Extra>
using Array = nb::ndarray<Type, nb::c_contig, nb::device::cpu, Extra...>;
using Matrix32 = Array<float, nb::ndim<2>>;
using ConstMatrix32 = Array<const float, nb::ndim<2>>;
using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
    if (!holds) throw nb::value_error(what);
}

void require_threads(int threads) {
    require(threads >= 1 && threads <= kMaxThreads, "threads must be from 1 to 1024");
}

void require_floats(const void* data, const char* what) {
    require(reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0, what);
}

Scalar scalar_of(int code) {
    require(code >= 0 && code <= 2, "an element type is 0 (F32), 1 (F16) or 2 (BF16)");
    return static_cast<Scalar>(code);
}

// The set of that name; an empty name is the best one.
const flashmoe::InstructionSet& set_of(const std::string& name) {
    for (const flashmoe::InstructionSet& set : flashmoe::instruction_sets())
        if (name.empty() || name == set.name) return set;
    throw nb::value_error("instruction_set is not among instruction_sets()");
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const flashmoe::InstructionSet& set : flashmoe::instruction_sets())
        names.emplace_back(set.name);
    return names;
}

// Elements of `type`: float32 for F32, uint16 that hold the bits for F16 and BF16.
void require_elements(const AnyMatrix& array, Scalar type, const char* what) {
    const nb::dlpack::dtype wanted =
        type == Scalar::f32 ? nb::dtype<float>() : nb::dtype<std::uint16_t>();
    require(array.dtype() == wanted, what);
}

void require_product(const ConstMatrix32& x, const Matrix32& y, std::size_t out, std::size_t in) {
    require(x.shape(1) == in, "x must be (T, in) with the weight's in");
    require(y.shape(0) == x.shape(0) && y.shape(1) == out, "y must be (T, out)");
    require_floats(x.data(), "x must be aligned to 4 bytes");
    require_floats(y.data(), "y must be aligned to 4 bytes");
}

flashmoe::AffineMatrix affine_of(const Array<const std::uint32_t, nb::ndim<2>>& weight,
                                 const AnyMatrix& scales, const AnyMatrix& biases, int bits,
                                 int group, int scales_type, std::size_t in) {
    require(bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8,
            "bits must be 2, 3, 4, 5, 6 or 8");
    require(group == 32 || group == 64 || group == 128, "group must be 32, 64 or 128");
    const Scalar scalar = scalar_of(scales_type);
    const std::size_t out = weight.shape(0);
    require(in % static_cast<std::size_t>(group) == 0, "in must be a multiple of group");
    require(weight.shape(1) == in / 32 * static_cast<std::size_t>(bits),
            "weight must be (out, in * bits / 32) uint32");
    for (const AnyMatrix* array : {&scales, &biases}) {
        require_elements(*array, scalar, "scales and biases must be of the type scales_type says");
        require(array->shape(0) == out && array->shape(1) == in / static_cast<std::size_t>(group),
                "scales and biases must be (out, in / group)");
    }
    return {weight.data(), scales.data(), biases.data(), scalar, bits, group, out, in};
}

flashmoe::PlainMatrix plain_of(const AnyMatrix& weight, int weight_type, std::size_t in) {
    const Scalar scalar = scalar_of(weight_type);
    require_elements(weight, scalar, "weight must be of the type weight_type says");
    require(weight.shape(1) == in, "weight must be (out, in)");
    return {weight.data(), scalar, weight.shape(0), in};
}

void matmul_affine(const ConstMatrix32& x, const Array<const std::uint32_t, nb::ndim<2>>& weight,
                   const AnyMatrix& scales, const AnyMatrix& biases, int bits, int group,
                   int scales_type, const Matrix32& y, int threads, const std::string& set_name) {
    require_threads(threads);
    const flashmoe::InstructionSet& set = set_of(set_name);
    const flashmoe::AffineMatrix matrix =
        affine_of(weight, scales, biases, bits, group, scales_type, x.shape(1));
    require_product(x, y, matrix.out, matrix.in);
    const nb::gil_scoped_release released;
    flashmoe::matmul_affine(set, x.data(), x.shape(0), matrix, y.data(), threads);
}

void matmul_plain(const ConstMatrix32& x, const AnyMatrix& weight, int weight_type,
                  const Matrix32& y, int threads, const std::string& set_name) {
    require_threads(threads);
    const flashmoe::InstructionSet& set = set_of(set_name);
    const flashmoe::PlainMatrix matrix = plain_of(weight, weight_type, x.shape(1));
    require_product(x, y, matrix.out, matrix.in);
    const nb::gil_scoped_release released;
    flashmoe::matmul_plain(set, x.data(), x.shape(0), matrix, y.data(), threads);
}

template <class Type>
Type taken(nb::handle object) {
    Type value;
    if (!nb::try_cast(object, value, false))  // false: no conversion, which would copy
        throw nb::type_error(
            "a matrix is (weight, weight_type) or (weight, scales, biases, bits, "
            "group, scales_type)");
    return value;
}

// A matrix of `in` inputs from the tuple of its arguments. The tuple keeps its arrays alive.
flashmoe::Matrix matrix_of(const nb::tuple& parts, std::size_t in) {
    if (parts.size() == 2) return plain_of(taken<AnyMatrix>(parts[0]), taken<int>(parts[1]), in);
    require(parts.size() == 6, "a matrix has 2 parts or 6");
    return affine_of(taken<Array<const std::uint32_t, nb::ndim<2>>>(parts[0]),
                     taken<AnyMatrix>(parts[1]), taken<AnyMatrix>(parts[2]), taken<int>(parts[3]),
                     taken<int>(parts[4]), taken<int>(parts[5]), in);
}

void expert_swiglu(const ConstMatrix32& x, const nb::tuple& gate, const nb::tuple& up,
                   const nb::tuple& down, const Matrix32& y, int threads,
                   const std::string& set_name) {
    require_threads(threads);
    const flashmoe::InstructionSet& set = set_of(set_name);
    const flashmoe::Matrix first = matrix_of(gate, x.shape(1));
    const flashmoe::Expert expert{first, matrix_of(up, x.shape(1)),
                                  matrix_of(down, flashmoe::out_of(first))};
    require(flashmoe::out_of(expert.up) == flashmoe::out_of(first),
            "gate and up must have the same outputs");
    require(flashmoe::out_of(expert.down) == x.shape(1), "down must give as many as gate takes");
    require_product(x, y, x.shape(1), x.shape(1));
    const nb::gil_scoped_release released;
    flashmoe::expert_swiglu(set, x.data(), x.shape(0), expert, y.data(), threads);
}

// Runs `work` on the bytes of a contiguous buffer, without the GIL.
template <class Work>
std::uint64_t over_bytes(nb::handle object, Work work) {
    Py_buffer view;
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
    std::uint64_t result;
    {
        const nb::gil_scoped_release released;
        result = work(view.buf, static_cast<std::size_t>(view.len));
    }
    PyBuffer_Release(&view);
    return result;
}

std::uint64_t xxh3_64(nb::handle object) { return over_bytes(object, flashmoe::xxh3_64); }

std::uint64_t touch(nb::handle object, int threads) {
    require_threads(threads);
    return over_bytes(object, [threads](const void* data, std::size_t bytes) {
        return flashmoe::touch(data, bytes, threads);
    });
}

using Destination = Array<std::uint8_t>;

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

    void promote(Ticket ticket) { reader_->promote(ticket); }

    bool cancel(Ticket ticket) {
        const bool cancelled = reader_->cancel(ticket);
        if (cancelled) destinations_.erase(ticket);
        return cancelled;
    }

    bool done(Ticket ticket) const { return reader_->done(ticket); }

    std::pair<int, std::uint64_t> wait(Ticket ticket) {
        flashmoe::ReadStatus status;
        {
            const nb::gil_scoped_release released;
            status = reader_->wait(ticket);
        }
        destinations_.erase(ticket);
        return {static_cast<int>(status.code), status.detail};
    }

    Ticket wait_any(const std::vector<Ticket>& tickets) {
        const nb::gil_scoped_release released;
        return reader_->wait_any(tickets);
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
            const nb::gil_scoped_release released;
            last = reader_->drain();
        }
        // Another thread may have submitted since: its destination stays.
        std::erase_if(destinations_, [last](const auto& entry) { return entry.first <= last; });
    }

    void close() {
        {
            const nb::gil_scoped_release released;
            reader_->close();
        }
        destinations_.clear();  // no thread is left to write to them, and none is accepted
    }

private:
    std::unordered_map<Ticket, Destination> destinations_;
    std::unique_ptr<Reader> reader_;
};

}  // namespace

NB_MODULE(_native, module) {
    module.doc() =
        "Native arithmetic and reads; its doors are kernels/cpu.py and stream/direct.py.";

    module.def("matmul_affine", &matmul_affine, "x"_a.noconvert(), "weight"_a.noconvert(),
               "scales"_a.noconvert(), "biases"_a.noconvert(), "bits"_a, "group"_a, "scales_type"_a,
               "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    module.def("matmul_plain", &matmul_plain, "x"_a.noconvert(), "weight"_a.noconvert(),
               "weight_type"_a, "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    module.def("expert_swiglu", &expert_swiglu, "x"_a.noconvert(), "gate"_a, "up"_a, "down"_a,
               "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    module.def("instruction_sets", &instruction_sets);
    module.def("xxh3_64", &xxh3_64, "buffer"_a);
    module.def("touch", &touch, "buffer"_a, "threads"_a);

    nb::class_<PythonReader>(module, "Reader")
        .def(nb::init<int>(), "threads"_a)
        .def("add_lane", &PythonReader::add_lane, "threads"_a)
        .def("open", &PythonReader::open, "path"_a, "direct"_a, "lane"_a = 0)
        .def("is_direct", &PythonReader::is_direct, "file"_a)
        .def("combine", &PythonReader::combine, "begin"_a, "stride"_a, "records"_a)
        .def("submit", &PythonReader::submit, "file"_a, "offset"_a, "destination"_a.noconvert(),
             "checksum"_a, "demand"_a)
        .def("promote", &PythonReader::promote, "ticket"_a)
        .def("cancel", &PythonReader::cancel, "ticket"_a)
        .def("done", &PythonReader::done, "ticket"_a)
        .def("wait", &PythonReader::wait, "ticket"_a)
        .def("wait_any", &PythonReader::wait_any, "tickets"_a)
        .def_prop_ro("bytes_read", &PythonReader::bytes_read)
        .def_prop_ro("lanes", &PythonReader::lanes)
        .def("failures", &PythonReader::failures)
        .def("drain", &PythonReader::drain)
        .def("close", &PythonReader::close);
}
