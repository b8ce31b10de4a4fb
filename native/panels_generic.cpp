// Products of many rows in portable C++: the twin of the vectored ones, bit for bit.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "generic.h"
#include "panels.h"

namespace flashmoe {
namespace {

// A row: v as int16, then a scale and a sum a group.
struct Row {
    explicit Row(const AffineMatrix& m)
        : group(static_cast<std::size_t>(m.group)),
          groups(m.in / group),
          scales(m.in * 2),
          sums(scales + groups * 4),
          size((sums + groups * 4 + 63) / 64 * 64) {}
    std::size_t group, groups, scales, sums, size;
};

std::size_t prepared_bytes(std::size_t rows, const AffineMatrix& m) { return rows * Row(m).size; }

void prepare(const float* x, const AffineMatrix& m, std::size_t t, void* into) {
    const Row row(m);
    auto* bytes = static_cast<unsigned char*>(into) + t * row.size;
    auto* codes = reinterpret_cast<std::int16_t*>(bytes);
    auto* scales = reinterpret_cast<float*>(bytes + row.scales);
    auto* sums = reinterpret_cast<float*>(bytes + row.sums);
    for (std::size_t g = 0; g < row.groups; ++g, x += row.group, codes += row.group) {
        float top = 0;
        bool finite = true;
        for (std::size_t i = 0; i < row.group; ++i) {
            finite = finite && std::isfinite(x[i]);
            top = std::max(top, std::fabs(x[i]));
        }
        const float inverse = finite && top >= kPanelLeast ? kPanelTop / top : 0;
        std::int32_t sum = 0;
        for (std::size_t i = 0; i < row.group; ++i) {
            codes[i] = static_cast<std::int16_t>(finite ? std::nearbyintf(x[i] * inverse) : 0);
            sum += codes[i];
        }
        scales[g] = finite ? top / kPanelTop : std::numeric_limits<float>::quiet_NaN();
        sums[g] = static_cast<float>(sum) * scales[g];
    }
}

std::size_t scratch_bytes(const AffineMatrix& m) { return m.in + m.in / 2; }

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    const Row row(m);
    auto* codes = static_cast<unsigned char*>(scratch);
    for (std::size_t o = begin; o < end; ++o) {
        generic::unpack(m, o, codes);
        for (std::size_t t = 0; t < rows; ++t) {
            const auto* bytes = static_cast<const unsigned char*>(prepared) + t * row.size;
            const auto* v = reinterpret_cast<const std::int16_t*>(bytes);
            const auto* scales = reinterpret_cast<const float*>(bytes + row.scales);
            const auto* sums = reinterpret_cast<const float*>(bytes + row.sums);
            float total = 0;
            for (std::size_t g = 0; g < row.groups; ++g) {
                std::int32_t sum = 0;
                for (std::size_t i = g * row.group; i < (g + 1) * row.group; ++i)
                    sum += codes[i] * v[i];
                const std::size_t at = o * row.groups + g;
                const float scale = generic::number(m.scalar, m.scales, at),
                            bias = generic::number(m.scalar, m.biases, at);
                total = std::fmaf(static_cast<float>(sum), scales[g] * scale, total);
                total = std::fmaf(bias, sums[g], total);
            }
            y[t * m.out + o] = total;
        }
    }
}

}  // namespace

const PanelKernels panels_generic{prepared_bytes, prepare, scratch_bytes, affine};

}  // namespace flashmoe
