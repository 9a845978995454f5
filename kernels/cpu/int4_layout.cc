#include "kernels/cpu/int4_layout.h"

#include <cstring>
#include <vector>

#include "kernels/cpu/panel_packing.h"
#include "kernels/quantize.h"

namespace epic::kernels {

void PackInt4Panels(const SourceMatrix& source, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed) {
  constexpr int kZeroPair = 0x88;
  const int64_t groups = Int4Groups(source.cols);
  std::vector<int8_t> row(source.cols);
  std::vector<BF16> scales(groups);
  const auto pack = [&](int64_t first, std::byte* panel) {
    for (int64_t g = 0; g < groups; ++g) {
      std::memset(panel + g * kInt4GroupBytes + kInt4ScaleBytes, kZeroPair, 256);
    }
    ForOutputs(source, first, [&](int64_t n, int64_t lane) {
      ReadInt4Row(source, n, row.data(), scales.data());
      for (int64_t g = 0; g < groups; ++g) {
        reinterpret_cast<BF16*>(panel + g * kInt4GroupBytes)[lane] = scales[g];
      }
      for (int64_t k = 0; k < source.cols; ++k) {
        std::byte* group = panel + k / kInt4Group * kInt4GroupBytes + kInt4ScaleBytes;
        std::byte& pair = group[k % kInt4Group / 2 * kPanelOutputs + lane];
        const auto nibble = static_cast<uint8_t>(row[k] + 8);
        pair = k % 2 == 0 ? (pair & std::byte{0xf0}) | std::byte{nibble}
                          : (pair & std::byte{0x0f}) | static_cast<std::byte>(nibble << 4);
      }
    });
  };
  PackPanels(panel_begin, panel_end, Int4PanelBytes(source.cols), packed, pack);
}

}  // namespace epic::kernels
