// A matrix together with the activations that are to meet it.
//
// Owns the prepared activations and who shares them; a product of any rows of any of several
// operands is the one that matmul_affine or matmul_plain would give, bit for bit.

#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "dispatch.h"

namespace flashmoe {

// Whether both want the same activations in the same form.
inline bool same_form(const AffineMatrix& a, const AffineMatrix& b) {
    return a.bits == b.bits && a.group == b.group && a.in == b.in;
}

class Operand {
public:
    // Makes room for the activations x (rows, in) in the form that the matrix wants. One of
    // `others` that wants the same form of the same activations shares its own.
    Operand(const RowKernels& kernels, const float* x, std::size_t rows, const Matrix& matrix,
            const std::vector<Operand>& others = {});

    // Brings the activations to that form. Must come before `rows`, of those that share too.
    void prepare() const;

    // Outputs [begin, end) of every activation row.
    void rows(std::size_t begin, std::size_t end, float* y) const;

    const Matrix& matrix() const { return *matrix_; }

private:
    const RowKernels* kernels_;
    const Matrix* matrix_;
    const float* x_;
    std::size_t rows_;
    std::shared_ptr<void> prepared_;
    bool owns_ = false;
};

// Computes outputs [begin, end) of part `part`; `worker` as in threads.h.
using PartTask =
    std::function<void(std::size_t part, std::size_t begin, std::size_t end, int worker)>;

// One parallel region over parts of so many rows each, side by side.
void parallel_parts(const std::vector<std::size_t>& rows, int threads, const PartTask& task);

}  // namespace flashmoe
