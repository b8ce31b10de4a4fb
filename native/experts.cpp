// SwiGLU experts side by side: gate, up and their SwiGLU in one parallel region over the rows of
// all of them, then down in another.

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "products.h"
#include "threads.h"

namespace flashmoe {
namespace {

// One expert's activations, the results in between, and where its outputs go.
struct Work {
    const Expert* expert;
    std::size_t rows, hidden, width;
    const float* x;
    std::vector<float> gathered, gate, up, scattered;
    float* y;
};

// Where several places want an expert, their rows are gathered first and scattered in the end.
Work work_of(const ExpertUse& use, const float* x, std::size_t places, float* outputs) {
    const std::size_t hidden = in_of(use.expert->gate), width = out_of(use.expert->gate);
    const std::size_t rows = use.wanted.size();
    Work work{use.expert, rows, hidden, width, nullptr, {}, {}, {}, {}, nullptr};
    work.gate.resize(rows * width);
    work.up.resize(rows * width);
    if (rows == 1) {
        work.x = x + use.wanted[0] / places * hidden;
        work.y = outputs + use.wanted[0] * hidden;
        return work;
    }
    work.gathered.reserve(rows * hidden);
    for (const std::size_t place : use.wanted) {
        const float* row = x + place / places * hidden;
        work.gathered.insert(work.gathered.end(), row, row + hidden);
    }
    work.scattered.resize(rows * hidden);
    work.x = work.gathered.data();
    work.y = work.scattered.data();
    return work;
}

void portable(const InstructionSet& set, std::vector<Work>& works, int threads) {
    for (Work& work : works) {
        float *gate = work.gate.data(), *up = work.up.data();
        project(set, work.x, work.rows, {{&work.expert->gate, gate}, {&work.expert->up, up}},
                threads);
        decode_of(set).swiglu(gate, up, work.gate.size());
        project(set, gate, work.rows, {{&work.expert->down, work.y}}, threads);
    }
}

void prepare_all(const std::vector<Operand>& operands, std::size_t work, int threads) {
    parallel_rows(operands.size(), worth(16 * work, threads),
                  [&](std::size_t begin, std::size_t end, int) {
                      for (std::size_t i = begin; i < end; ++i) operands[i].prepare();
                  });
}

void vectored(const InstructionSet& set, std::vector<Work>& works, int threads) {
    std::vector<Operand> inner, outer;  // gate and up of each in turn; down
    std::vector<std::size_t> widths, hiddens;
    std::size_t inputs = 0, middles = 0, products = 0;
    inner.reserve(2 * works.size());
    outer.reserve(works.size());
    for (const Work& work : works) {
        inner.emplace_back(*set.kernels, work.x, work.rows, work.expert->gate, inner);
        inner.emplace_back(*set.kernels, work.x, work.rows, work.expert->up, inner);
        outer.emplace_back(*set.kernels, work.gate.data(), work.rows, work.expert->down);
        widths.push_back(work.width);
        hiddens.push_back(work.hidden);
        inputs += work.gathered.size();
        middles += work.gate.size();
        products += work.gate.size() * work.hidden;
    }
    prepare_all(inner, inputs, threads);
    parallel_parts(widths, worth(2 * products, threads),
                   [&](std::size_t part, std::size_t begin, std::size_t end, int) {
                       Work& work = works[part];
                       float *gate = work.gate.data(), *up = work.up.data();
                       inner[2 * part].rows(begin, end, gate);
                       inner[2 * part + 1].rows(begin, end, up);
                       for (std::size_t t = 0; t < work.rows; ++t)
                           decode_of(set).swiglu(gate + t * work.width + begin,
                                                 up + t * work.width + begin, end - begin);
                   });
    prepare_all(outer, middles, threads);
    parallel_parts(hiddens, worth(products, threads),
                   [&](std::size_t part, std::size_t begin, std::size_t end, int) {
                       outer[part].rows(begin, end, works[part].y);
                   });
}

}  // namespace

void experts(const InstructionSet& set, const float* x, std::size_t places,
             const std::vector<ExpertUse>& uses, float* outputs, int threads) {
    std::vector<Work> works;
    works.reserve(uses.size());
    for (const ExpertUse& use : uses) works.push_back(work_of(use, x, places, outputs));
    if (set.kernels == nullptr)
        portable(set, works, threads);
    else
        vectored(set, works, threads);
    for (std::size_t i = 0; i < works.size(); ++i) {
        const Work& work = works[i];
        for (std::size_t t = 0; work.rows > 1 && t < work.rows; ++t)
            std::copy_n(work.y + t * work.hidden, work.hidden,
                        outputs + uses[i].wanted[t] * work.hidden);
    }
}

}  // namespace flashmoe
