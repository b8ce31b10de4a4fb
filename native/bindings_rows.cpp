// What is computed row by row for Python: norms, sums, routing.

#include <cstdint>
#include <string>

#include "bindings.h"

namespace flashmoe::bindings {
namespace {

using Floats = Array<float>;
using ConstFloats = Array<const float>;

void rms_norm(const ConstFloats& x, const ConstVector32& weight, float eps, const Floats& y,
              int threads, const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    const std::size_t width = weight.size();
    require(width > 0 && x.size() % width == 0, "x must be (..., width) with the weight's width");
    const std::size_t rows = x.size() / width;
    require_floats(x.data(), "x must be aligned to 4 bytes");
    const float* factor = floats_of(weight, width, "weight must be (width)");
    float* into = floats_of(y, rows * width, "y must be as large as x");
    const NativeWork working;
    flashmoe::rms_norm(set, x.data(), rows, width, factor, eps, into, threads);
}

void add(const ConstFloats& x, const Floats& y, int threads) {
    require_threads(threads);
    const std::size_t count = x.size();
    const float* from = floats_of(x, count, "x must be aligned to 4 bytes");
    float* into = floats_of(y, count, "y must be as large as x");
    const NativeWork working;
    flashmoe::add(from, count, into, threads);
}

void route(const ConstMatrix32& logits, bool renormalize,
           const Array<std::int64_t, nb::ndim<2>>& ids, const Matrix32& weights,
           const std::string& set_name) {
    const InstructionSet& set = set_of(set_name);
    const std::size_t rows = logits.shape(0), count = logits.shape(1), top = ids.shape(1);
    require_floats(logits.data(), "logits must be aligned to 4 bytes");
    require(ids.shape(0) == rows && top >= 1 && top <= count, "ids must be (T, top), top <= count");
    float* into = floats_of(weights, rows * top, "weights must be (T, top)");
    const NativeWork working;
    decode_of(set).route(logits.data(), rows, count, top, renormalize, ids.data(), into);
}

}  // namespace

void bind_rows(nb::module_& module) {
    module.def("rms_norm", &rms_norm, "x"_a.noconvert(), "weight"_a.noconvert(), "eps"_a,
               "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    module.def("add", &add, "x"_a.noconvert(), "y"_a.noconvert(), "threads"_a);
    module.def("route", &route, "logits"_a.noconvert(), "renormalize"_a, "ids"_a.noconvert(),
               "weights"_a.noconvert(), "instruction_set"_a = "");
}

}  // namespace flashmoe::bindings
