// What the files of the bindings share: checks of arguments, handles, and the clock of native work.
//
// A wrong argument is a ValueError or TypeError and never a wild pointer.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "kernels.h"

namespace flashmoe::bindings {

namespace nb = nanobind;
using namespace nb::literals;

constexpr int kMaxThreads = 1024;

template <class Type, class... Extra>
using Array = nb::ndarray<Type, nb::c_contig, nb::device::cpu, Extra...>;
using Vector32 = Array<float, nb::ndim<1>>;
using ConstVector32 = Array<const float, nb::ndim<1>>;
using Matrix32 = Array<float, nb::ndim<2>>;
using ConstMatrix32 = Array<const float, nb::ndim<2>>;
using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Time that this thread has spent in native code since it began, waiting for reads included.
inline thread_local std::chrono::nanoseconds busy{0};

// Counts the time until it goes.
class Counted {
public:
    Counted() : began_(std::chrono::steady_clock::now()) {}
    ~Counted() { busy += std::chrono::steady_clock::now() - began_; }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;

private:
    std::chrono::steady_clock::time_point began_;
};

// The same, and lets other Python threads run meanwhile.
class NativeWork {
    Counted counted_;
    nb::gil_scoped_release released_;
};

inline void require(bool holds, const char* what) {
    if (!holds) throw nb::value_error(what);
}

inline void require_threads(int threads) {
    require(threads >= 1 && threads <= kMaxThreads, "threads must be from 1 to 1024");
}

inline void require_floats(const void* data, const char* what) {
    require(reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0, what);
}

// The data of an array of exactly so many floats.
template <class Floats>
auto floats_of(const Floats& array, std::size_t count, const char* what) {
    require(array.size() == count, what);
    require_floats(array.data(), "arrays of float32 must be aligned to 4 bytes");
    return array.data();
}

// Arrays that are read and written in one call.
inline void require_apart(const float* a, std::size_t a_count, const float* b, std::size_t b_count,
                          const char* what) {
    const std::less_equal<const float*> up_to;
    require(up_to(a + a_count, b) || up_to(b + b_count, a), what);
}

template <class Handle>
const Handle& handle_of(nb::handle object, const char* what) {
    if (!nb::isinstance<Handle>(object)) throw nb::type_error(what);
    return nb::cast<const Handle&>(object);
}

inline Scalar scalar_of(int code) {
    require(code >= 0 && code <= 2, "an element type is 0 (F32), 1 (F16) or 2 (BF16)");
    return static_cast<Scalar>(code);
}

// The set of that name; an empty name is the best one.
inline const InstructionSet& set_of(const std::string& name) {
    for (const InstructionSet& set : instruction_sets())
        if (name.empty() || name == set.name) return set;
    throw nb::value_error("instruction_set is not among instruction_sets()");
}

AffineMatrix affine_of(const Array<const std::uint32_t, nb::ndim<2>>& weight,
                       const AnyMatrix& scales, const AnyMatrix& biases, int bits, int group,
                       int scales_type, std::size_t in);

PlainMatrix plain_of(const AnyMatrix& weight, int weight_type, std::size_t in);

// A matrix of `in` inputs from the tuple of its arguments. The tuple keeps its arrays alive.
Matrix matrix_of(const nb::tuple& parts, std::size_t in);

struct MatrixHandle {
    MatrixHandle(nb::tuple arrays, std::size_t in)
        : parts(std::move(arrays)), matrix(matrix_of(parts, in)) {}
    nb::tuple parts;
    Matrix matrix;
};

void bind_products(nb::module_& module);
void bind_decode(nb::module_& module);
void bind_rows(nb::module_& module);
void bind_draw(nb::module_& module);
void bind_cache(nb::module_& module);

}  // namespace flashmoe::bindings
