#include "kernels/cpu/int8_layout.h"

#include <vector>

#include "kernels/cpu/panel_packing.h"
#include "kernels/quantize.h"

namespace epic::kernels {

void PackInt8Panels(const SourceMatrix& source, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed) {
  std::vector<int8_t> row(source.cols);
  const auto pack = [&](int64_t first, std::byte* panel) {
    auto* scales = reinterpret_cast<float*>(panel);
    auto* tiles = reinterpret_cast<int8_t*>(panel + kInt8HeaderBytes);
    ForOutputs(source, first, [&](int64_t n, int64_t lane) {
      scales[lane] = ReadInt8Row(source, n, row.data());
      // Four inputs of an output make the word that one dot instruction takes.
      for (int64_t k = 0; k < source.cols; ++k) tiles[k / 4 * 64 + lane * 4 + k % 4] = row[k];
    });
  };
  PackPanels(panel_begin, panel_end, Int8PanelBytes(source.cols), packed, pack);
}

}  // namespace epic::kernels
