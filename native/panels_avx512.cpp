// Products of many rows with AVX-512 VNNI.

#include "panels_avx512.h"

#include "dispatch.h"

namespace flashmoe {
namespace {

static_assert(kPanels * sizeof(Panel) <= kPanelScratch);

std::size_t scratch_bytes(const AffineMatrix&) { return kPanels * sizeof(Panel); }

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    const Block block(m);
    Panel* panels = static_cast<Panel*>(scratch);
    for_panels(m, begin, end, panels, [&](const Span& span, std::size_t first, std::size_t count) {
        for (std::size_t t = 0; t < rows; t += Block::kRows) {
            const Byte* base = static_cast<const Byte*>(prepared) + t / Block::kRows * block.size;
            for (std::size_t i = 0; i < span.count; ++i)
                rows_of(base, least(rows - t, Block::kRows), block, first, count, panels[i],
                        Lanes(span.end - span.at(i)), y + t * m.out + span.at(i), m.out);
        }
    });
}

}  // namespace

const PanelKernels panels_avx512{prepared_bytes, prepare, scratch_bytes, affine};

}  // namespace flashmoe
