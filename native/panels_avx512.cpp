// Products of many rows with AVX-512 VNNI.

#include "panels_avx512.h"

#include "dispatch.h"

namespace flashmoe {
namespace {

std::size_t scratch_bytes(const AffineMatrix&) { return sizeof(Panel); }

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    const Block block(m);
    Panel& panel = *static_cast<Panel*>(scratch);
    for (std::size_t o = begin; o < end; o += kPanelOutputs) {
        const std::size_t left = end - o;
        const __mmask16 lanes[2] = {first_lanes(left), first_lanes(left > 16 ? left - 16 : 0)};
        for (std::size_t first = 0; first < m.in; first += kStretch) {
            const std::size_t count = least(m.in - first, kStretch);
            unpack(m, o, first, count, panel);
            for (std::size_t t = 0; t < rows; t += Block::kRows) {
                const Byte* base =
                    static_cast<const Byte*>(prepared) + t / Block::kRows * block.size;
                rows_of(base, 0, least(rows - t, Block::kRows), block, first, count, panel, lanes,
                        y + t * m.out + o, m.out);
            }
        }
    }
}

}  // namespace

const PanelKernels panels_avx512{prepared_bytes, prepare, scratch_bytes, affine};

}  // namespace flashmoe
