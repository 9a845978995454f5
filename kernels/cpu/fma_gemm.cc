#include "kernels/cpu/fma_gemm.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/panel_packing.h"
#include "kernels/number.h"

namespace epic::kernels {
namespace {

void PackF32Panel(const SourceMatrix& source, int64_t first, std::byte* to) {
  auto* out = reinterpret_cast<float*>(to);
  std::vector<float> row(source.cols);
  ForOutputs(source, first, [&](int64_t n, int64_t lane) {
    ReadSource(source, n, 0, source.cols, row.data());
    for (int64_t k = 0; k < source.cols; ++k) out[k * kFmaPanel + lane] = row[k];
  });
}

void PackE4M3Panel(const SourceMatrix& source, int64_t first, std::byte* to) {
  auto* multipliers = reinterpret_cast<float*>(to);
  auto* scales = reinterpret_cast<float*>(to + 64);
  auto* codes = reinterpret_cast<uint8_t*>(to + FmaHeaderBytes(source.cols, source.dtype));
  // NaN codes decode to numbers (LoadE4M3), so an output that has one is multiplied by NaN at the
  // end, all others by 1.
  std::fill_n(multipliers, kFmaPanel, 1.0f);
  for (int64_t b = 0; b < FmaScaleBlocks(source.cols); ++b) {
    // Codes decode 2⁻⁸ too small, and a power of two moves into the scale exactly.
    scales[b] = SourceScale(source, first, b * kScaleBlock) * 0x1p8f;
  }
  const auto* data = static_cast<const uint8_t*>(source.data);
  ForOutputs(source, first, [&](int64_t n, int64_t lane) {
    for (int64_t k = 0; k < source.cols; ++k) {
      const uint8_t code = data[n * source.cols + k];
      codes[k * kFmaPanel + lane] = code;
      if (IsE4M3NaN(code)) multipliers[lane] = std::numeric_limits<float>::quiet_NaN();
    }
  });
}

}  // namespace

void FmaGemmFamily::Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin,
                         int64_t panel_end, std::byte* packed) const {
  if (dtype == DType::kI4) return PackInt4Panels(source, panel_begin, panel_end, packed);
  PackPanels(panel_begin, panel_end, panel_bytes(source.cols, dtype), packed,
             [&](int64_t first, std::byte* to) {
               switch (dtype) {
                 case DType::kF8E4M3:
                   return PackE4M3Panel(source, first, to);
                 case DType::kF32:
                   return PackF32Panel(source, first, to);
                 default:
                   return PackBF16Panel(source, first, to);
               }
             });
}

int64_t FmaGemmFamily::scratch_bytes(int64_t k) const {
  // Scratch holds the rows of either way (few rows widened whole, or 128 inputs of more rows), and
  // the block of 128 inputs that many rows decode, for four panels, the most of any instruction
  // set.
  const int64_t rows = kFmaRowTile * RoundUp(std::max<int64_t>(k, kScaleBlock), kFmaPanel);
  return 4 * (rows + int64_t{kScaleBlock + 1} * 4 * kFmaPanel);
}

}  // namespace epic::kernels
