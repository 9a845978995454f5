#include "kernels/cpu/int8_layout.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/quantize.h"

namespace epic::kernels {

void PackInt8Panels(const SourceMatrix& source, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed) {
  constexpr int64_t kPanel = 16;
  std::vector<int8_t> row(source.cols);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    std::byte* panel = packed + p * Int8PanelBytes(source.cols);
    std::memset(panel, 0, Int8PanelBytes(source.cols));
    auto* scales = reinterpret_cast<float*>(panel);
    auto* tiles = reinterpret_cast<int8_t*>(panel + kInt8HeaderBytes);
    for (int64_t n = p * kPanel; n < std::min(source.rows, (p + 1) * kPanel); ++n) {
      const int64_t lane = n % kPanel;
      scales[lane] = ReadInt8Row(source, n, row.data());
      for (int64_t k = 0; k < source.cols; ++k) tiles[k / 4 * 64 + lane * 4 + k % 4] = row[k];
    }
  }
}

}  // namespace epic::kernels
