#include "kernels/cpu/int4_layout.h"

#include <cstring>
#include <vector>

#include "kernels/cpu/panel_packing.h"
#include "kernels/quantize.h"

namespace epic::kernels {

void PackInt4Panels(const SourceMatrix& source, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed) {
  // Two nibbles of 8 are two zeros: the value is the nibble − 8.
  constexpr int kZeroPair = 0x88;
  const int64_t groups = Int4Groups(source.cols);
  std::vector<int8_t> row(source.cols);
  std::vector<BF16> scales(groups);
  const auto pack = [&](int64_t first, std::byte* panel) {
    for (int64_t g = 0; g < groups; ++g) {
      // Inputs past K and outputs past N become zeros, since some families multiply whole lines.
      std::memset(panel + Int4LinesAt(g), kZeroPair, 4 * kInt4LineBytes);
    }
    ForOutputs(source, first, [&](int64_t n, int64_t lane) {
      ReadInt4Row(source, n, row.data(), scales.data());
      for (int64_t g = 0; g < groups; ++g) {
        reinterpret_cast<BF16*>(panel + Int4ScalesAt(g))[lane] = scales[g];
      }
      for (int64_t k = 0; k < source.cols; ++k) {
        std::byte* line = panel + Int4LinesAt(k / kInt4Group) + k % kInt4Group / 8 * kInt4LineBytes;
        const int64_t nibble = k % 8 / 2;
        std::byte& pair = line[2 * (2 * lane + k % 2) + nibble / 2];
        const auto value = static_cast<uint8_t>(row[k] + 8);
        // Only its own half changes: the byte's other nibble is another input of the output.
        pair = nibble % 2 == 0 ? (pair & std::byte{0xf0}) | std::byte{value}
                               : (pair & std::byte{0x0f}) | static_cast<std::byte>(value << 4);
      }
    });
  };
  PackPanels(panel_begin, panel_end, Int4PanelBytes(source.cols), packed, pack);
}

}  // namespace epic::kernels
