// A token's SwiGLU experts side by side: gate, up and their SwiGLU in one parallel region over the
// rows of all of them, then down in another.

#include <memory>
#include <vector>

#include "dispatch.h"
#include "products.h"
#include "threads.h"

namespace flashmoe {
namespace {

// What lies between the products of one expert, (width) each.
struct Middle {
    std::size_t width;
    float *gate, *up;
};

void portable(const InstructionSet& set, const float* x, const std::vector<ExpertUse>& uses,
              const std::vector<Middle>& middles, int threads) {
    for (std::size_t i = 0; i < uses.size(); ++i) {
        const Expert& expert = *uses[i].expert;
        const auto [width, gate, up] = middles[i];
        project(set, x, 1, {{&expert.gate, gate}, {&expert.up, up}}, threads);
        decode_of(set).swiglu(gate, up, width);
        project(set, gate, 1, {{&expert.down, uses[i].y}}, threads);
    }
}

void vectored(const InstructionSet& set, const float* x, const std::vector<ExpertUse>& uses,
              const std::vector<Middle>& middles, int threads) {
    std::vector<Operand> inner, outer;  // gate and up of each in turn; down
    std::vector<std::size_t> widths, hiddens;
    std::size_t all = 0, products = 0;
    inner.reserve(2 * uses.size());
    outer.reserve(uses.size());
    for (std::size_t i = 0; i < uses.size(); ++i) {
        const Expert& expert = *uses[i].expert;
        inner.emplace_back(*set.kernels, x, 1, expert.gate, inner);
        inner.emplace_back(*set.kernels, x, 1, expert.up, inner);
        outer.emplace_back(*set.kernels, middles[i].gate, 1, expert.down);
        widths.push_back(middles[i].width);
        hiddens.push_back(out_of(expert.down));
        all += middles[i].width;
        products += middles[i].width * out_of(expert.down);
    }
    for (const Operand& each : inner) each.prepare();  // as a rule one does for all
    parallel_parts(widths, worth(2 * products, threads),
                   [&](std::size_t part, std::size_t begin, std::size_t end, int) {
                       float *gate = middles[part].gate, *up = middles[part].up;
                       inner[2 * part].rows(begin, end, gate);
                       inner[2 * part + 1].rows(begin, end, up);
                       decode_of(set).swiglu(gate + begin, up + begin, end - begin);
                   });
    parallel_rows(outer.size(), worth(16 * all, threads),
                  [&](std::size_t begin, std::size_t end, int) {
                      for (std::size_t i = begin; i < end; ++i) outer[i].prepare();
                  });
    parallel_parts(hiddens, worth(products, threads),
                   [&](std::size_t part, std::size_t begin, std::size_t end, int) {
                       outer[part].rows(begin, end, uses[part].y);
                   });
}

}  // namespace

void experts(const InstructionSet& set, const float* x, const std::vector<ExpertUse>& uses,
             int threads) {
    std::size_t floats = 0;
    for (const ExpertUse& use : uses) floats += 2 * out_of(use.expert->gate);
    const auto memory = std::make_unique_for_overwrite<float[]>(floats);
    std::vector<Middle> middles;
    float* next = memory.get();
    for (const ExpertUse& use : uses) {
        const std::size_t width = out_of(use.expert->gate);
        middles.push_back({width, next, next + width});
        next += 2 * width;
    }
    if (set.kernels == nullptr)
        portable(set, x, uses, middles, threads);
    else
        vectored(set, x, uses, middles, threads);
}

}  // namespace flashmoe
