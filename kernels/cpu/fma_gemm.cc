#include "kernels/cpu/fma_gemm.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/number.h"

namespace epic::kernels {
namespace {

void PackBF16Panel(const SourceMatrix& source, int64_t n_begin, std::byte* to) {
  auto* out = reinterpret_cast<BF16*>(to);
  std::vector<float> row(source.cols);
  for (int64_t n = n_begin; n < std::min(source.rows, n_begin + kFmaPanel); ++n) {
    ReadSource(source, n, 0, source.cols, row.data());
    for (int64_t k = 0; k < source.cols; ++k) {
      out[k / 2 * 2 * kFmaPanel + (n - n_begin) * 2 + k % 2] = ToBF16(row[k]);
    }
  }
}

void PackF32Panel(const SourceMatrix& source, int64_t n_begin, std::byte* to) {
  auto* out = reinterpret_cast<float*>(to);
  std::vector<float> row(source.cols);
  for (int64_t n = n_begin; n < std::min(source.rows, n_begin + kFmaPanel); ++n) {
    ReadSource(source, n, 0, source.cols, row.data());
    for (int64_t k = 0; k < source.cols; ++k) out[k * kFmaPanel + (n - n_begin)] = row[k];
  }
}

void PackE4M3Panel(const SourceMatrix& source, int64_t n_begin, std::byte* to) {
  auto* multipliers = reinterpret_cast<float*>(to);
  auto* scales = reinterpret_cast<float*>(to + 64);
  auto* codes = reinterpret_cast<uint8_t*>(to + FmaHeaderBytes(source.cols, source.dtype));
  std::fill_n(multipliers, kFmaPanel, 1.0f);
  for (int64_t b = 0; b < FmaScaleBlocks(source.cols); ++b) {
    scales[b] = SourceScale(source, n_begin, b * kScaleBlock) * 0x1p8f;
  }
  const auto* data = static_cast<const uint8_t*>(source.data);
  for (int64_t n = n_begin; n < std::min(source.rows, n_begin + kFmaPanel); ++n) {
    const int64_t lane = n - n_begin;
    for (int64_t k = 0; k < source.cols; ++k) {
      const uint8_t code = data[n * source.cols + k];
      codes[k * kFmaPanel + lane] = code;
      if (IsE4M3NaN(code)) multipliers[lane] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace

void FmaGemmFamily::Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin,
                         int64_t panel_end, std::byte* packed) const {
  if (dtype == DType::kI4) return PackInt4Panels(source, panel_begin, panel_end, packed);
  const int64_t bytes = panel_bytes(source.cols, dtype);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    std::byte* to = packed + p * bytes;
    std::memset(to, 0, bytes);
    switch (dtype) {
      case DType::kF8E4M3:
        PackE4M3Panel(source, p * kFmaPanel, to);
        break;
      case DType::kF32:
        PackF32Panel(source, p * kFmaPanel, to);
        break;
      default:
        PackBF16Panel(source, p * kFmaPanel, to);
    }
  }
}

int64_t FmaGemmFamily::scratch_bytes(int64_t k) const {
  const int64_t rows = kFmaRowTile * RoundUp(std::max<int64_t>(k, kScaleBlock), kFmaPanel);
  return 4 * (rows + int64_t{kScaleBlock + 1} * 4 * kFmaPanel);
}

}  // namespace epic::kernels
