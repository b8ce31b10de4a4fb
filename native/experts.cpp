// One SwiGLU expert in two parallel regions: gate, up and their SwiGLU; then down.

#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace flashmoe {
namespace {

// A matrix with the activations that are to meet it, in the form its kernels want.
class Operand {
public:
    // `like`, where it is given and wants the same form of the same activations, shares its own.
    Operand(const RowKernels& kernels, const float* x, std::size_t rows, const Matrix& matrix,
            const Operand* like = nullptr)
        : kernels_(kernels), matrix_(matrix), x_(x), rows_(rows) {
        const auto* affine = std::get_if<AffineMatrix>(&matrix);
        if (affine == nullptr) return;
        if (like != nullptr) {
            const auto* other = std::get_if<AffineMatrix>(&like->matrix_);
            if (other != nullptr && other->bits == affine->bits && other->group == affine->group) {
                prepared_ = like->prepared_;
                return;
            }
        }
        prepared_ = prepare(kernels, x, rows, *affine);
    }

    void rows(std::size_t begin, std::size_t end, float* y) const {
        if (const auto* affine = std::get_if<AffineMatrix>(&matrix_))
            kernels_.affine(prepared_.get(), rows_, *affine, begin, end, y);
        else
            kernels_.plain(x_, rows_, std::get<PlainMatrix>(matrix_), begin, end, y);
    }

private:
    const RowKernels& kernels_;
    const Matrix& matrix_;
    const float* x_;
    std::size_t rows_;
    std::shared_ptr<void> prepared_;
};

// gate = silu(gate) * up for outputs [begin, end) of every row; exp overflows to the right answer.
void swiglu(float* gate, const float* up, std::size_t rows, std::size_t out, std::size_t begin,
            std::size_t end) {
    for (std::size_t t = 0; t < rows; ++t)
        for (std::size_t i = t * out + begin; i < t * out + end; ++i)
            gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
}

void product(const InstructionSet& set, const float* x, std::size_t rows, const Matrix& matrix,
             float* y, int threads) {
    if (const auto* affine = std::get_if<AffineMatrix>(&matrix))
        matmul_affine(set, x, rows, *affine, y, threads);
    else
        matmul_plain(set, x, rows, std::get<PlainMatrix>(matrix), y, threads);
}

}  // namespace

void expert_swiglu(const InstructionSet& set, const float* x, std::size_t rows,
                   const Expert& expert, float* y, int threads) {
    const std::size_t width = out_of(expert.gate), in = out_of(expert.down);
    std::vector<float> gate(rows * width), up(rows * width);
    if (set.kernels == nullptr) {
        product(set, x, rows, expert.gate, gate.data(), threads);
        product(set, x, rows, expert.up, up.data(), threads);
        swiglu(gate.data(), up.data(), rows, width, 0, width);
        return product(set, gate.data(), rows, expert.down, y, threads);
    }
    const Operand by_gate(*set.kernels, x, rows, expert.gate);
    const Operand by_up(*set.kernels, x, rows, expert.up, &by_gate);
    const std::size_t work = rows * width * in;
    parallel_rows(width, worth(2 * work, threads), [&](std::size_t begin, std::size_t end, int) {
        by_gate.rows(begin, end, gate.data());
        by_up.rows(begin, end, up.data());
        swiglu(gate.data(), up.data(), rows, width, begin, end);
    });
    const Operand by_down(*set.kernels, gate.data(), rows, expert.down);
    parallel_rows(out_of(expert.down), worth(work, threads),
                  [&](std::size_t begin, std::size_t end, int) { by_down.rows(begin, end, y); });
}

}  // namespace flashmoe
