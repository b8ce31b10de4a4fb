// Products of many rows, split over threads: activations first, then weight rows.

#include "panels.h"

#include <algorithm>
#include <memory>
#include <new>

#include "dispatch.h"
#include "generic.h"
#include "products.h"
#include "threads.h"

namespace flashmoe {
namespace {

constexpr std::align_val_t kLine{64};
constexpr std::size_t kPlaces = 1024;  // activation rows of the experts computed together

using Bytes = std::unique_ptr<unsigned char, void (*)(unsigned char*)>;

Bytes room(std::size_t count) {
    return {static_cast<unsigned char*>(::operator new(std::max<std::size_t>(count, 1), kLine)),
            [](unsigned char* held) { ::operator delete(held, kLine); }};
}

std::size_t blocks(std::size_t outputs) { return (outputs + kPanelOutputs - 1) / kPanelOutputs; }

void plain_rows(const InstructionSet& set, const float* x, std::size_t rows,
                const PlainMatrix& matrix, std::size_t begin, std::size_t end, float* y) {
    if (set.kernels == nullptr)
        generic::plain(x, rows, matrix, begin, end, y);
    else
        set.kernels->plain(x, rows, matrix, begin, end, y);
}

// Activations (rows, in), or chosen rows of them, in every form that the matrices they meet want.
class Activations {
public:
    Activations(const InstructionSet& set, const float* x, std::size_t rows, std::size_t in,
                const std::size_t* chosen = nullptr)
        : set_(&set), x_(x), chosen_(chosen), rows_(rows), in_(in) {}

    std::size_t rows() const { return rows_; }

    // Makes room for what the matrix wants. Before `prepare`.
    void meet(const Matrix& matrix) {
        const auto* affine = std::get_if<AffineMatrix>(&matrix);
        if (affine == nullptr) {
            if (chosen_ != nullptr) gathered_.resize(rows_ * in_);
            return;
        }
        if (find(*affine) != nullptr) return;
        // Zeros where `prepare` does not write: in a block of rows that is not full.
        const std::size_t count = set_->panels->prepared_bytes(rows_, *affine);
        const std::size_t full = set_->panels->prepared_bytes(rows_ / 48 * 48, *affine);
        forms_.push_back({*affine, room(count)});
        std::fill_n(forms_.back().bytes.get() + full, count - full, 0);
    }

    // Brings row t to every form.
    void prepare(std::size_t t) const {
        const float* from = x_ + (chosen_ == nullptr ? t : chosen_[t]) * in_;
        if (!gathered_.empty()) std::copy_n(from, in_, gathered_.data() + t * in_);
        for (const Form& form : forms_)
            set_->panels->prepare(from, form.matrix, t, form.bytes.get());
    }

    // Outputs [begin, end) of every row, y (rows, out).
    void product(const Matrix& matrix, std::size_t begin, std::size_t end, float* y,
                 void* scratch) const {
        if (const auto* affine = std::get_if<AffineMatrix>(&matrix)) {
            const Form& form = *find(*affine);
            set_->panels->affine(form.bytes.get(), rows_, *affine, begin, end, y, scratch);
        } else {
            plain_rows(*set_, chosen_ == nullptr ? x_ : gathered_.data(), rows_,
                       std::get<PlainMatrix>(matrix), begin, end, y);
        }
    }

private:
    struct Form {
        AffineMatrix matrix;  // one of those that want it
        Bytes bytes;
    };

    const Form* find(const AffineMatrix& matrix) const {
        for (const Form& form : forms_)
            if (same_form(form.matrix, matrix)) return &form;
        return nullptr;
    }

    const InstructionSet* set_;
    const float* x_;
    const std::size_t* chosen_;
    std::size_t rows_, in_;
    std::vector<Form> forms_;
    mutable std::vector<float> gathered_;
};

// Memory for every worker, enough for each of the matrices.
class Scratch {
public:
    Scratch(const InstructionSet& set, const std::vector<const Matrix*>& matrices, int threads)
        : bytes_(nullptr, nullptr) {
        for (const Matrix* matrix : matrices)
            if (const auto* affine = std::get_if<AffineMatrix>(matrix))
                each_ = std::max(each_, (set.panels->scratch_bytes(*affine) + 63) / 64 * 64);
        bytes_ = room(each_ * static_cast<std::size_t>(std::max(threads, 1)));
    }

    void* of(int worker) const { return bytes_.get() + each_ * static_cast<std::size_t>(worker); }

private:
    std::size_t each_ = 0;
    Bytes bytes_;
};

void prepare_all(const std::vector<const Activations*>& all, int threads) {
    std::vector<std::size_t> counts;
    for (const Activations* each : all) counts.push_back(each->rows());
    parallel_parts(counts, threads, [&](std::size_t part, std::size_t begin, std::size_t end, int) {
        for (std::size_t t = begin; t < end; ++t) all[part]->prepare(t);
    });
}

// An expert at work: its activations, the results in between, and its outputs.
struct Work {
    const PanelUse* use;
    Activations in, middle;
    std::vector<float> gate, up, out;

    Work(const InstructionSet& set, const PanelUse& given, const float* x)
        : use(&given),
          in(set, x, given.tokens.size(), in_of(given.expert->gate), given.tokens.data()),
          middle(set, nullptr, 0, 0) {
        const Expert& expert = *given.expert;
        const std::size_t rows = given.tokens.size(), width = out_of(expert.gate);
        gate.resize(rows * width);
        up.resize(rows * width);
        out.resize(rows * out_of(expert.down));
        in.meet(expert.gate);
        in.meet(expert.up);
        middle = Activations(set, gate.data(), rows, width);
        middle.meet(expert.down);
    }
};

// `uses` in [first, last) together.
void add_some(const InstructionSet& set, const float* x, const PanelUse* first,
              const PanelUse* last, float* y, int threads) {
    std::vector<Work> works;
    works.reserve(static_cast<std::size_t>(last - first));
    std::vector<const Activations*> inputs, middles;
    std::vector<const Matrix*> matrices;
    std::vector<std::size_t> widths, hiddens;
    for (const PanelUse* use = first; use != last; ++use) {
        works.emplace_back(set, *use, x);
        widths.push_back(blocks(out_of(use->expert->gate)));
        hiddens.push_back(blocks(out_of(use->expert->down)));
        for (const Matrix* matrix : {&use->expert->gate, &use->expert->up, &use->expert->down})
            matrices.push_back(matrix);
    }
    for (const Work& work : works) inputs.push_back(&work.in), middles.push_back(&work.middle);
    const Scratch scratch(set, matrices, threads);
    prepare_all(inputs, threads);
    parallel_parts(widths, threads, [&](std::size_t part, std::size_t from, std::size_t to, int w) {
        Work& work = works[part];
        const std::size_t width = out_of(work.use->expert->gate);
        const std::size_t begin = from * kPanelOutputs, end = std::min(to * kPanelOutputs, width);
        float *gate = work.gate.data(), *up = work.up.data();
        work.in.product(work.use->expert->gate, begin, end, gate, scratch.of(w));
        work.in.product(work.use->expert->up, begin, end, up, scratch.of(w));
        for (std::size_t t = begin; t < work.gate.size(); t += width)
            decode_of(set).swiglu(gate + t, up + t, end - begin);
    });
    prepare_all(middles, threads);
    parallel_parts(hiddens, threads,
                   [&](std::size_t part, std::size_t from, std::size_t to, int w) {
                       Work& work = works[part];
                       const std::size_t hidden = out_of(work.use->expert->down);
                       work.middle.product(work.use->expert->down, from * kPanelOutputs,
                                           std::min(to * kPanelOutputs, hidden), work.out.data(),
                                           scratch.of(w));
                   });
    const std::size_t hidden = out_of(first->expert->down);
    parallel_rows(blocks(hidden), threads, [&](std::size_t from, std::size_t to, int) {
        const std::size_t begin = from * kPanelOutputs, end = std::min(to * kPanelOutputs, hidden);
        for (const Work& work : works)
            for (std::size_t t = 0; t < work.use->tokens.size(); ++t) {
                const float weight = work.use->weights[t], *out = work.out.data() + t * hidden;
                float* into = y + work.use->tokens[t] * hidden;
                for (std::size_t i = begin; i < end; ++i) into[i] += weight * out[i];
            }
    });
}

}  // namespace

void project_panels(const InstructionSet& set, const float* x, std::size_t rows,
                    const std::vector<Product>& products, int threads) {
    if (products.empty() || rows == 0) return;
    Activations activations(set, x, rows, in_of(*products.front().matrix));
    std::vector<std::size_t> counts;
    std::vector<const Matrix*> matrices;
    std::size_t work = 0;
    for (const Product& each : products) {
        activations.meet(*each.matrix);
        matrices.push_back(each.matrix);
        counts.push_back(blocks(out_of(*each.matrix)));
        work += rows * out_of(*each.matrix) * in_of(*each.matrix);
    }
    threads = worth(work, threads);
    const Scratch scratch(set, matrices, threads);
    prepare_all({&activations}, threads);
    parallel_parts(counts, threads, [&](std::size_t part, std::size_t from, std::size_t to, int w) {
        const Product& each = products[part];
        activations.product(*each.matrix, from * kPanelOutputs,
                            std::min(to * kPanelOutputs, out_of(*each.matrix)), each.y,
                            scratch.of(w));
    });
}

void add_experts(const InstructionSet& set, const float* x, const std::vector<PanelUse>& uses,
                 float* y, int threads) {
    for (std::size_t i = 0; i < uses.size();) {
        std::size_t last = i, places = 0, work = 0;
        while (last < uses.size() && (last == i || places + uses[last].tokens.size() <= kPlaces)) {
            places += uses[last].tokens.size();
            work += uses[last].tokens.size() * 3 * out_of(uses[last].expert->gate) *
                    in_of(uses[last].expert->gate);
            ++last;
        }
        add_some(set, x, uses.data() + i, uses.data() + last, y, worth(work, threads));
        i = last;
    }
}

}  // namespace flashmoe
