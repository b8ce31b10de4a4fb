// Products and experts for Python, and the handles by which it names weights.
//
// A handle is made once: it holds the checked description of its arrays, and keeps them alive.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace flashmoe::bindings {
namespace {

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

}  // namespace

AffineMatrix affine_of(const Array<const std::uint32_t, nb::ndim<2>>& weight,
                       const AnyMatrix& scales, const AnyMatrix& biases, int bits, int group,
                       int scales_type, std::size_t in) {
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

PlainMatrix plain_of(const AnyMatrix& weight, int weight_type, std::size_t in) {
    const Scalar scalar = scalar_of(weight_type);
    require_elements(weight, scalar, "weight must be of the type weight_type says");
    require(weight.shape(1) == in, "weight must be (out, in)");
    return {weight.data(), scalar, weight.shape(0), in};
}

namespace {

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const InstructionSet& set : instruction_sets()) found.emplace_back(set.name);
    return found;
}

void matmul_affine(const ConstMatrix32& x, const Array<const std::uint32_t, nb::ndim<2>>& weight,
                   const AnyMatrix& scales, const AnyMatrix& biases, int bits, int group,
                   int scales_type, const Matrix32& y, int threads, const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    const AffineMatrix matrix =
        affine_of(weight, scales, biases, bits, group, scales_type, x.shape(1));
    require_product(x, y, matrix.out, matrix.in);
    const NativeWork working;
    flashmoe::matmul_affine(set, x.data(), x.shape(0), matrix, y.data(), threads);
}

void matmul_plain(const ConstMatrix32& x, const AnyMatrix& weight, int weight_type,
                  const Matrix32& y, int threads, const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    const PlainMatrix matrix = plain_of(weight, weight_type, x.shape(1));
    require_product(x, y, matrix.out, matrix.in);
    const NativeWork working;
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

}  // namespace

Matrix matrix_of(const nb::tuple& parts, std::size_t in) {
    if (parts.size() == 2) return plain_of(taken<AnyMatrix>(parts[0]), taken<int>(parts[1]), in);
    require(parts.size() == 6, "a matrix has 2 parts or 6");
    return affine_of(taken<Array<const std::uint32_t, nb::ndim<2>>>(parts[0]),
                     taken<AnyMatrix>(parts[1]), taken<AnyMatrix>(parts[2]), taken<int>(parts[3]),
                     taken<int>(parts[4]), taken<int>(parts[5]), in);
}

namespace {

struct ExpertHandle {
    ExpertHandle(const MatrixHandle& gate, const MatrixHandle& up, const MatrixHandle& down)
        : parts(nb::make_tuple(gate.parts, up.parts, down.parts)),
          expert{gate.matrix, up.matrix, down.matrix} {
        require(out_of(expert.up) == out_of(expert.gate), "gate and up must have the same outputs");
        require(in_of(expert.up) == in_of(expert.gate), "gate and up must have the same inputs");
        require(in_of(expert.down) == out_of(expert.gate), "down must take what gate gives");
        require(out_of(expert.down) == in_of(expert.gate), "down must give as many as gate takes");
    }
    nb::tuple parts;
    Expert expert;
};

// Of one row as matmul gives it, of more by panels.h.
void project(const ConstMatrix32& x, const nb::list& matrices, const Array<float>& y, int threads,
             const std::string& set_name, bool panels) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    std::vector<Product> products;
    std::size_t outputs = 0;
    require_floats(x.data(), "x must be aligned to 4 bytes");
    for (const nb::handle each : matrices) {
        const Matrix& matrix = handle_of<MatrixHandle>(each, "matrices are handles of them").matrix;
        require(in_of(matrix) == x.shape(1), "x must be (T, in) with the weights' in");
        products.push_back({&matrix, y.data() + outputs});
        outputs += x.shape(0) * out_of(matrix);
    }
    floats_of(y, outputs, "y must have room for every product in turn");
    const NativeWork working;
    if (panels)
        project_panels(set, x.data(), x.shape(0), products, threads);
    else
        flashmoe::project(set, x.data(), x.shape(0), products, threads);
}

// Of one token as its experts are, of more by panels.h.
void swiglu(const ConstMatrix32& x, const ExpertHandle& handle, const MatrixHandle* gate,
            const Matrix32& y, int threads, const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    require_product(x, y, x.shape(1), in_of(handle.expert.gate));
    require(gate == nullptr || (in_of(gate->matrix) == x.shape(1) && out_of(gate->matrix) == 1),
            "the gate must be (1, hidden)");
    const NativeWork working;
    const std::size_t rows = x.shape(0);
    if (rows == 1) {
        flashmoe::experts(set, x.data(), {{&handle.expert, y.data()}}, threads);
    } else {
        std::vector<std::size_t> all(rows);
        std::iota(all.begin(), all.end(), std::size_t{0});
        std::fill_n(y.data(), y.size(), 0.0F);
        const std::vector<float> ones(rows, 1.0F);
        add_experts(set, x.data(), {{&handle.expert, all, ones}}, y.data(), threads);
    }
    if (gate == nullptr) return;
    std::vector<float> gates(rows);
    flashmoe::project(set, x.data(), rows, {{&gate->matrix, gates.data()}}, threads);
    decode_of(set).scale(gates.data(), rows, y.shape(1), y.data());
}

using Ids = Array<const std::int64_t, nb::ndim<2>>;

// Those experts of one token whose numbers are given, to their places among its ids.
void experts(const ConstMatrix32& x, const Ids& ids, const std::vector<std::int64_t>& numbers,
             const nb::list& handles, const Matrix32& outputs, int threads,
             const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    const std::size_t hidden = x.shape(1), places = ids.shape(1);
    require(x.shape(0) == 1 && ids.shape(0) == 1, "x must be (1, hidden), ids (1, k)");
    require(outputs.shape(0) == places && outputs.shape(1) == hidden,
            "outputs must be (k, hidden)");
    require_floats(x.data(), "x must be aligned to 4 bytes");
    require_floats(outputs.data(), "outputs must be aligned to 4 bytes");
    require(numbers.size() == handles.size(), "every expert needs its number");
    std::vector<ExpertUse> uses;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        const Expert& expert =
            handle_of<ExpertHandle>(handles[i], "experts are handles of them").expert;
        require(in_of(expert.gate) == hidden, "an expert must take what x has");
        for (std::size_t place = 0; place < places; ++place)
            if (ids.data()[place] == numbers[i])
                uses.push_back({&expert, outputs.data() + place * hidden});
    }
    const NativeWork working;
    flashmoe::experts(set, x.data(), uses, threads);
}

void add_experts_of(const ConstMatrix32& x, const Ids& ids, const ConstMatrix32& weights,
                    const std::vector<std::int64_t>& numbers, const nb::list& handles,
                    const Matrix32& y, int threads, const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    const std::size_t rows = x.shape(0), hidden = x.shape(1), places = ids.shape(1);
    require(ids.shape(0) == rows, "ids must be (T, k)");
    const float* given = floats_of(weights, rows * places, "weights must be (T, k)");
    require_product(x, y, hidden, hidden);
    require(numbers.size() == handles.size(), "every expert needs its number");
    std::vector<PanelUse> uses;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        const Expert& expert =
            handle_of<ExpertHandle>(handles[i], "experts are handles of them").expert;
        require(in_of(expert.gate) == hidden, "an expert must take what x has");
        PanelUse use{&expert, {}, {}};
        for (std::size_t place = 0; place < rows * places; ++place)
            if (ids.data()[place] == numbers[i]) {
                use.tokens.push_back(place / places);
                use.weights.push_back(given[place]);
            }
        if (!use.tokens.empty()) uses.push_back(std::move(use));
    }
    const NativeWork working;
    add_experts(set, x.data(), uses, y.data(), threads);
}

void combine(const ConstMatrix32& outputs, const ConstMatrix32& weights, const Matrix32& y,
             const std::string& set_name) {
    const InstructionSet& set = set_of(set_name);
    const std::size_t places = outputs.shape(0), width = outputs.shape(1);
    const float* each = floats_of(outputs, places * width, "outputs must be (k, hidden)");
    const float* given = floats_of(weights, places, "weights must be (1, k)");
    float* into = floats_of(y, width, "y must be (1, hidden)");
    const NativeWork working;
    decode_of(set).combine(each, given, places, width, into);
}

}  // namespace

void bind_products(nb::module_& module) {
    module.def("instruction_sets", &names);
    module.def("matmul_affine", &matmul_affine, "x"_a.noconvert(), "weight"_a.noconvert(),
               "scales"_a.noconvert(), "biases"_a.noconvert(), "bits"_a, "group"_a, "scales_type"_a,
               "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    module.def("matmul_plain", &matmul_plain, "x"_a.noconvert(), "weight"_a.noconvert(),
               "weight_type"_a, "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    nb::class_<MatrixHandle>(module, "Matrix")
        .def(nb::init<nb::tuple, std::size_t>(), "parts"_a, "inputs"_a);
    nb::class_<ExpertHandle>(module, "Expert")
        .def(nb::init<const MatrixHandle&, const MatrixHandle&, const MatrixHandle&>(), "gate"_a,
             "up"_a, "down"_a);
    module.def("project", &project, "x"_a.noconvert(), "matrices"_a, "y"_a.noconvert(), "threads"_a,
               "instruction_set"_a = "", "panels"_a = false);
    module.def("swiglu", &swiglu, "x"_a.noconvert(), "expert"_a, "gate"_a.none(), "y"_a.noconvert(),
               "threads"_a, "instruction_set"_a = "");
    module.def("add_experts", &add_experts_of, "x"_a.noconvert(), "ids"_a.noconvert(),
               "weights"_a.noconvert(), "numbers"_a, "experts"_a, "y"_a.noconvert(), "threads"_a,
               "instruction_set"_a = "");
    module.def("experts", &experts, "x"_a.noconvert(), "ids"_a.noconvert(), "numbers"_a,
               "experts"_a, "outputs"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    module.def("combine", &combine, "outputs"_a.noconvert(), "weights"_a.noconvert(),
               "y"_a.noconvert(), "instruction_set"_a = "");
}

}  // namespace flashmoe::bindings
