#include "kernels/cpu/panel_packing.h"

#include <vector>

#include "kernels/number.h"

namespace epic::kernels {

void PackBF16Panel(const SourceMatrix& source, int64_t first, std::byte* to) {
  auto* out = reinterpret_cast<BF16*>(to);
  std::vector<float> row(source.cols);
  ForOutputs(source, first, [&](int64_t n, int64_t lane) {
    ReadSource(source, n, 0, source.cols, row.data());
    for (int64_t k = 0; k < source.cols; ++k) {
      // Pairs of inputs stand together, as VDPBF16PS and TDPBF16PS want them; family fma splits a
      // pair by a shift and a mask.
      out[(k / 2 * kPanelOutputs + lane) * 2 + k % 2] = ToBF16(row[k]);
    }
  });
}

}  // namespace epic::kernels
