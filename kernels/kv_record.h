// How a KV record holds a latent. A pure function of the latent, so every device writes the same
// bytes.
//
// FP8: block b of 128 values has the scale 2ᵉ, e the least (≥ −100) with which 448·2ᵉ reaches the
// block's largest magnitude, and codes E4M3(value / 2ᵉ); code × scale is exact in BF16 and FP32. A
// block with a NaN or an infinity has the scale NaN.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/host_device.h"
#include "kernels/kv_view.h"
#include "kernels/number.h"

namespace epic::kernels {

// The scale of a block whose largest magnitude is `largest`. The exponent's floor of −100 keeps
// 1 / scale and code · scale normal numbers.
EPIC_HOST_DEVICE inline float KvScale(float largest) {
  const uint32_t bits = std::bit_cast<uint32_t>(largest);
  if (bits >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  const auto exponent = static_cast<int>(bits >> 23) - 127;
  const int scale = exponent - 8 + ((bits & 0x7fffffu) > 0x600000u ? 1 : 0);  // 448 = 1.75·2⁸
  return std::bit_cast<float>(static_cast<uint32_t>(std::max(scale, -100) + 127) << 23);
}

// Writes the latent and scale parts of a record of layout.type, whose padding stays as it is.
inline void WriteLatent(const KvLayout& layout, const BF16* latent, std::byte* record) {
  if (layout.type == KvType::kBF16) {
    std::memcpy(record, latent, 2 * layout.latent_dim);
    return;
  }
  auto* codes = reinterpret_cast<uint8_t*>(record);
  for (int b = 0; b < layout.scale_count(); ++b) {
    const int end = std::min(layout.latent_dim, (b + 1) * kKvScaleBlock);
    uint16_t largest = 0;
    for (int i = b * kKvScaleBlock; i < end; ++i) {
      largest = std::max(largest, static_cast<uint16_t>(latent[i].bits & 0x7fffu));
    }
    const float scale = KvScale(ToFloat(BF16{largest}));
    const bool sound = scale == scale;
    const float inverse = sound ? 1.0f / scale : 0;
    for (int i = b * kKvScaleBlock; i < end; ++i) {
      codes[i] = sound ? ToE4M3(ToFloat(latent[i]) * inverse) : 0;
    }
    std::memcpy(record + layout.scales_offset_bytes() + 4 * b, &scale, sizeof(scale));
  }
}

// Value i of a record's latent; it is exact in BF16.
inline float ReadLatent(const KvLayout& layout, const std::byte* record, int i) {
  if (layout.type == KvType::kBF16) return ToFloat(LoadUnaligned<BF16>(record, i));
  const auto scale = LoadUnaligned<float>(record + layout.scales_offset_bytes(), i / kKvScaleBlock);
  return E4M3ToFloat(LoadUnaligned<uint8_t>(record, i)) * scale;
}

// The whole latent, in BF16: exact, as ReadLatent is.
inline void ReadLatents(const KvLayout& layout, const std::byte* record, BF16* latent) {
  if (layout.type == KvType::kBF16) {
    std::memcpy(latent, record, 2 * layout.latent_dim);
    return;
  }
  for (int i = 0; i < layout.latent_dim; ++i) latent[i] = ToBF16(ReadLatent(layout, record, i));
}

}  // namespace epic::kernels
