#include "kernels/cpu/tile_gemm.h"

#include <cstring>

#include "kernels/cpu/panel_packing.h"
#include "kernels/number.h"

namespace epic::kernels {
namespace {

void PackE4M3Panel(const SourceMatrix& source, int64_t first, std::byte* to) {
  auto* scales = reinterpret_cast<float*>(to);
  auto* codes = reinterpret_cast<uint8_t*>(to + TileHeaderBytes(source.cols, source.dtype));
  // The whole panel has one scale, as its 16 outputs never cross a block of 128.
  for (int64_t k = 0; k < source.cols; k += kScaleBlock) {
    scales[k / kScaleBlock] = SourceScale(source, first, k);
  }
  const auto* data = static_cast<const uint8_t*>(source.data);
  ForOutputs(source, first, [&](int64_t n, int64_t lane) {
    for (int64_t k = 0; k < source.cols; ++k) {
      const int in_tile = static_cast<int>(k % kBf16TileInputs);
      const auto element = static_cast<int>(2 * lane + in_tile % 2);
      codes[k / kBf16TileInputs * kCodeTileBytes + CodeOffset(in_tile / 2, element)] =
          data[n * source.cols + k];
    }
  });
}

}  // namespace

void TileGemmFamily::Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin,
                          int64_t panel_end, std::byte* packed) const {
  if (dtype == DType::kI4) return PackInt4Panels(source, panel_begin, panel_end, packed);
  PackPanels(panel_begin, panel_end, panel_bytes(source.cols, dtype), packed,
             [&](int64_t first, std::byte* to) {
               const bool fp8 = dtype == DType::kF8E4M3;
               fp8 ? PackE4M3Panel(source, first, to) : PackBF16Panel(source, first, to);
             });
}

void TileGemmFamily::PrepareRow(const BF16* row, int64_t k, DType /*dtype*/, std::byte* to) const {
  std::memcpy(to, row, 2 * k);
  // Tiles read whole rows: inputs past K must be zeros, as 0 · NaN is NaN.
  std::memset(to + 2 * k, 0, TileRowBytes(k) - 2 * k);
}

}  // namespace epic::kernels
