#include "kernels/cpu/tile_gemm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/number.h"

namespace epic::kernels {
namespace {

void PackBF16Panel(const SourceMatrix& source, int64_t n_begin, std::byte* to) {
  auto* out = reinterpret_cast<BF16*>(to);
  std::vector<float> row(source.cols);
  for (int64_t n = n_begin; n < std::min(source.rows, n_begin + kTilePanel); ++n) {
    ReadSource(source, n, 0, source.cols, row.data());
    for (int64_t k = 0; k < source.cols; ++k) {
      out[k / 2 * 2 * kTilePanel + (n - n_begin) * 2 + k % 2] = ToBF16(row[k]);
    }
  }
}

void PackE4M3Panel(const SourceMatrix& source, int64_t n_begin, std::byte* to) {
  auto* scales = reinterpret_cast<float*>(to);
  auto* codes = reinterpret_cast<uint8_t*>(to + TileHeaderBytes(source.cols, source.dtype));
  for (int64_t k = 0; k < source.cols; k += kScaleBlock) {
    scales[k / kScaleBlock] = SourceScale(source, n_begin, k);
  }
  const auto* data = static_cast<const uint8_t*>(source.data);
  for (int64_t n = n_begin; n < std::min(source.rows, n_begin + kTilePanel); ++n) {
    const int lane = static_cast<int>(n - n_begin);
    for (int64_t k = 0; k < source.cols; ++k) {
      const int in_tile = static_cast<int>(k % kBf16TileInputs);
      codes[k / kBf16TileInputs * kCodeTileBytes +
            CodeOffset(in_tile / 2, 2 * lane + in_tile % 2)] = data[n * source.cols + k];
    }
  }
}

}  // namespace

void TileGemmFamily::Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin,
                          int64_t panel_end, std::byte* packed) const {
  if (dtype == DType::kI4) return PackInt4Panels(source, panel_begin, panel_end, packed);
  const int64_t bytes = panel_bytes(source.cols, dtype);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    std::byte* to = packed + p * bytes;
    std::memset(to, 0, bytes);
    if (dtype == DType::kF8E4M3) {
      PackE4M3Panel(source, p * kTilePanel, to);
    } else {
      PackBF16Panel(source, p * kTilePanel, to);
    }
  }
}

void TileGemmFamily::PrepareRow(const BF16* row, int64_t k, DType /*dtype*/, std::byte* to) const {
  std::memcpy(to, row, 2 * k);
  std::memset(to + 2 * k, 0, TileRowBytes(k) - 2 * k);
}

}  // namespace epic::kernels
