// What the draw of a token asks of all scores.

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "bindings.h"
#include "draw.h"

namespace flashmoe::bindings {
namespace {

using Row = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = Array<double, nb::ndim<1>>;
using ConstNumbers = Array<const double, nb::ndim<1>>;
using Places = Array<std::int64_t, nb::ndim<1>>;
using Slices = Array<std::uint16_t, nb::ndim<1>>;
using ConstPlaces = Array<const std::int64_t, nb::ndim<1>>;

constexpr std::size_t kWorthReleasing = 1 << 14;  // scores; less is over in some microseconds

// NativeWork where there is much, else only counted: a GIL that was let go may be long in coming.
class Work {
public:
    explicit Work(std::size_t numbers) {
        if (numbers >= kWorthReleasing) released_.emplace();
    }

private:
    Counted counted_;
    std::optional<nb::gil_scoped_release> released_;
};

template <class Number>
Number* aligned(Number* data) {
    require(reinterpret_cast<std::uintptr_t>(data) % alignof(Number) == 0,
            "arrays must be aligned to their numbers");
    return data;
}

// A row of logits and what has changed in it. Keeps the arrays.
class ScoresHandle {
public:
    ScoresHandle(Row logits, ConstPlaces places, ConstNumbers values)
        : logits_(std::move(logits)), places_(std::move(places)), values_(std::move(values)) {
        require(logits_.size() > 0, "there are no logits");
        require(values_.size() == places_.size(), "every place needs a value");
        const bool narrow = logits_.dtype() == nb::dtype<float>();
        if (!narrow && logits_.dtype() != nb::dtype<double>())
            throw nb::type_error("logits are float32 or float64");
        scores = {narrow ? aligned(static_cast<const float*>(logits_.data())) : nullptr,
                  narrow ? nullptr : aligned(static_cast<const double*>(logits_.data())),
                  logits_.size(),
                  aligned(places_.data()),
                  aligned(values_.data()),
                  places_.size()};
        std::int64_t next = 0;
        for (std::size_t i = 0; i < scores.changed; ++i) {
            require(scores.places[i] >= next, "places must rise, from 0");
            next = scores.places[i] + 1;
        }
        require(next <= static_cast<std::int64_t>(scores.count), "a place is beyond the logits");
    }

    double* blocks_of(const Numbers& y) const {
        require(y.size() == scores.blocks(), "there must be a number for each block");
        return aligned(y.data());
    }

    flashmoe::Scores scores;

private:
    Row logits_;
    ConstPlaces places_;
    ConstNumbers values_;
};

Scale scale_of(double peak, double factor) {
    require(factor > 0 && std::isfinite(factor), "factor must be above 0 and finite");
    return {peak, factor};
}

void peaks(const ScoresHandle& row, const Numbers& y, int threads, const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    double* into = row.blocks_of(y);
    const Work working(row.scores.count);
    flashmoe::peaks(set, row.scores, into, threads);
}

void masses(const ScoresHandle& row, double peak, double factor, const Numbers& y, int threads,
            const std::string& set_name) {
    require_threads(threads);
    const InstructionSet& set = set_of(set_name);
    const Scale scale = scale_of(peak, factor);
    double* into = row.blocks_of(y);
    const Work working(row.scores.count);
    flashmoe::masses(set, row.scores, scale, into, threads);
}

void guesses(const ScoresHandle& row, double peak, double factor, const Numbers& y, int threads,
             const std::string& set_name) {
    require_threads(threads);
    require(row.scores.narrow != nullptr && row.scores.changed == 0 &&
                row.scores.count <= std::size_t{1} << 24,
            "guesses are of float32 logits, unchanged, up to 2^24");
    const InstructionSet& set = set_of(set_name);
    const Scale scale = scale_of(peak, factor);
    double* into = row.blocks_of(y);
    const Work working(row.scores.count);
    flashmoe::guesses(set, row.scores, scale, into, threads);
}

void widen(const ScoresHandle& row, std::size_t begin, const Numbers& y) {
    require(begin <= row.scores.count && y.size() <= row.scores.count - begin,
            "there are not so many scores");
    double* into = aligned(y.data());
    const Work working(y.size());
    flashmoe::widen(row.scores, begin, begin + y.size(), into);
}

std::size_t above(const ScoresHandle& row, const Numbers& peaks, double least, const Places& places,
                  const Numbers& values) {
    const double* highest = row.blocks_of(peaks);
    require(places.size() == values.size(), "places and values must be as many");
    std::int64_t* into_places = aligned(places.data());
    double* into_values = aligned(values.data());
    const Work working(row.scores.count);
    return flashmoe::above(row.scores, highest, least, places.size(), into_places, into_values);
}

std::size_t highest(const ScoresHandle& row, const Numbers& peaks, double least, bool ordered,
                    const Places& places, const Numbers& values) {
    const double* of_blocks = row.blocks_of(peaks);
    require(
        places.size() == values.size() && places.size() > 0 && places.size() <= row.scores.count,
        "places and values must be as many, from 1 to all");
    std::int64_t* into_places = aligned(places.data());
    double* into_values = aligned(values.data());
    const Work working(row.scores.count);
    return flashmoe::highest(row.scores, of_blocks, least, places.size(), ordered, into_places,
                             into_values);
}

double lowest(const ScoresHandle& row, double enough) {
    const Work working(row.scores.count);
    return flashmoe::lowest(row.scores, enough);
}

void kept_sums(const ScoresHandle& row, const Numbers& peaks, double least, double peak,
               double factor, double min_p, const Numbers& y, const std::string& set_name) {
    const InstructionSet& set = set_of(set_name);
    const Scale scale = scale_of(peak, factor);
    const double* of_blocks = row.blocks_of(peaks);
    double* into = row.blocks_of(y);
    const Work working(row.scores.count);
    flashmoe::kept_sums(set, row.scores, of_blocks, least, scale, min_p, into);
}

double slices(const ScoresHandle& row, double peak, double factor, double temperature, double steps,
              double least, std::int64_t last, double min_p, const Slices& numbers,
              const Numbers& y, const std::string& set_name) {
    const InstructionSet& set = set_of(set_name);
    require(temperature > 0 && steps < 0, "temperature must be above 0, and steps below");
    require(numbers.size() == row.scores.count, "every score needs a slice");
    require(y.size() > 0 && y.size() < flashmoe::kNoSlice, "there are no slices, or too many");
    const flashmoe::Slicing by{scale_of(peak, factor), temperature, steps, least, last, min_p};
    std::uint16_t* into_numbers = aligned(numbers.data());
    double* into = aligned(y.data());
    const Work working(row.scores.count);
    return flashmoe::slices(set, row.scores, by, y.size(), into_numbers, into);
}

std::size_t members(const ScoresHandle& row, const Slices& numbers, std::uint16_t slice,
                    const Places& places, const Numbers& values) {
    require(numbers.size() == row.scores.count, "every score needs a slice");
    require(places.size() == values.size(), "places and values must be as many");
    const std::uint16_t* of_scores = aligned(numbers.data());
    std::int64_t* into_places = aligned(places.data());
    double* into_values = aligned(values.data());
    const Work working(row.scores.count);
    return flashmoe::members(row.scores, of_scores, slice, places.size(), into_places, into_values);
}

void weights(const ConstNumbers& x, double peak, double factor, const Numbers& y,
             const std::string& set_name) {
    const InstructionSet& set = set_of(set_name);
    const Scale scale = scale_of(peak, factor);
    require(x.size() == y.size(), "y must be as large as x");
    const double* from = aligned(x.data());
    double* into = aligned(y.data());
    const Work working(x.size());
    set.draw->weights(from, x.size(), scale, into);
}

}  // namespace

void bind_draw(nb::module_& module) {
    module.attr("DRAW_BLOCK") = flashmoe::kDrawBlock;
    module.attr("DRAW_GUESS") = flashmoe::kGuess;
    nb::class_<ScoresHandle>(module, "Scores")
        .def(nb::init<Row, ConstPlaces, ConstNumbers>(), "logits"_a.noconvert(),
             "places"_a.noconvert(), "values"_a.noconvert())
        .def("peaks", &peaks, "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "")
        .def("masses", &masses, "peak"_a, "factor"_a, "y"_a.noconvert(), "threads"_a,
             "instruction_set"_a = "")
        .def("guesses", &guesses, "peak"_a, "factor"_a, "y"_a.noconvert(), "threads"_a,
             "instruction_set"_a = "")
        .def("widen", &widen, "begin"_a, "y"_a.noconvert())
        .def("above", &above, "peaks"_a.noconvert(), "least"_a, "places"_a.noconvert(),
             "values"_a.noconvert())
        .def("highest", &highest, "peaks"_a.noconvert(), "least"_a, "ordered"_a,
             "places"_a.noconvert(), "values"_a.noconvert())
        .def("lowest", &lowest, "enough"_a)
        .def("kept_sums", &kept_sums, "peaks"_a.noconvert(), "least"_a, "peak"_a, "factor"_a,
             "min_p"_a, "y"_a.noconvert(), "instruction_set"_a = "")
        .def("slices", &slices, "peak"_a, "factor"_a, "temperature"_a, "steps"_a, "least"_a,
             "last"_a, "min_p"_a, "numbers"_a.noconvert(), "y"_a.noconvert(),
             "instruction_set"_a = "")
        .def("members", &members, "numbers"_a.noconvert(), "slice"_a, "places"_a.noconvert(),
             "values"_a.noconvert());
    module.def("weights", &weights, "x"_a.noconvert(), "peak"_a, "factor"_a, "y"_a.noconvert(),
               "instruction_set"_a = "");
}

}  // namespace flashmoe::bindings
