// Several products of one input in one parallel region.

#include "products.h"

#include <algorithm>
#include <new>

#include "threads.h"

namespace flashmoe {
namespace {

constexpr std::align_val_t kLine{64};

void product(const InstructionSet& set, const float* x, std::size_t rows, const Product& each,
             int threads) {
    if (const auto* affine = std::get_if<AffineMatrix>(each.matrix))
        matmul_affine(set, x, rows, *affine, each.y, threads);
    else
        matmul_plain(set, x, rows, std::get<PlainMatrix>(*each.matrix), each.y, threads);
}

}  // namespace

Operand::Operand(const RowKernels& kernels, const float* x, std::size_t rows, const Matrix& matrix,
                 const std::vector<Operand>& others)
    : kernels_(&kernels), matrix_(&matrix), x_(x), rows_(rows) {
    const auto* affine = std::get_if<AffineMatrix>(&matrix);
    if (affine == nullptr) return;
    for (const Operand& other : others) {
        const auto* theirs = std::get_if<AffineMatrix>(other.matrix_);
        if (theirs == nullptr || other.x_ != x || other.rows_ != rows) continue;
        if (!same_form(*theirs, *affine)) continue;
        prepared_ = other.prepared_;
        return;
    }
    owns_ = true;
    prepared_ = std::shared_ptr<void>(::operator new(kernels.prepared_bytes(rows, *affine), kLine),
                                      [](void* held) { ::operator delete(held, kLine); });
}

void Operand::prepare() const {
    if (owns_) kernels_->prepare(x_, rows_, std::get<AffineMatrix>(*matrix_), prepared_.get());
}

void Operand::rows(std::size_t begin, std::size_t end, float* y) const {
    if (const auto* affine = std::get_if<AffineMatrix>(matrix_))
        kernels_->affine(prepared_.get(), rows_, *affine, begin, end, y);
    else
        kernels_->plain(x_, rows_, std::get<PlainMatrix>(*matrix_), begin, end, y);
}

void parallel_parts(const std::vector<std::size_t>& rows, int threads, const PartTask& task) {
    std::size_t total = 0;
    for (const std::size_t count : rows) total += count;
    parallel_rows(total, threads, [&](std::size_t begin, std::size_t end, int worker) {
        std::size_t start = 0;
        for (std::size_t part = 0; part < rows.size() && start < end; start += rows[part++]) {
            const std::size_t first = std::max(begin, start),
                              last = std::min(end, start + rows[part]);
            if (first < last) task(part, first - start, last - start, worker);
        }
    });
}

void project(const InstructionSet& set, const float* x, std::size_t rows,
             const std::vector<Product>& products, int threads) {
    if (set.kernels == nullptr) {
        for (const Product& each : products) product(set, x, rows, each, threads);
        return;
    }
    std::vector<Operand> operands;
    std::vector<std::size_t> counts;
    operands.reserve(products.size());
    std::size_t work = 0;
    for (const Product& each : products) {
        operands.emplace_back(*set.kernels, x, rows, *each.matrix, operands);
        operands.back().prepare();
        counts.push_back(out_of(*each.matrix));
        work += rows * out_of(*each.matrix) * in_of(*each.matrix);
    }
    parallel_parts(counts, worth(work, threads),
                   [&](std::size_t part, std::size_t begin, std::size_t end, int) {
                       operands[part].rows(begin, end, products[part].y);
                   });
}

}  // namespace flashmoe
