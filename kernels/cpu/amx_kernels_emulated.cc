// The kernels of amx_gemm_inl.h in plain C++ throughout. Compiled for AVX2 and FMA, so that a fused
// multiply-add is one instruction.
#include "kernels/cpu/amx_emulated_tiles.h"
#include "kernels/cpu/amx_gemm_inl.h"

namespace epic::kernels {
namespace {

float AsFloat(uint32_t bits) { return __builtin_bit_cast(float, bits); }

uint16_t BF16OfE4M3(uint8_t code) {
  const uint32_t sign = (code & 0x80u) << 8;
  const uint32_t exponent = (code >> 3) & 0xfu;
  const uint32_t mantissa = code & 7u;
  if ((code & 0x7fu) == 0x7fu) return static_cast<uint16_t>(sign | 0x7fc0u);
  if (exponent != 0) return static_cast<uint16_t>(sign | (exponent + 120) << 7 | mantissa << 4);
  // The value of a denormal code is a normal number in BF16, made by one exact product.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  return static_cast<uint16_t>(sign | __builtin_bit_cast(uint32_t, magnitude) >> 16);
}

struct PlainVectors {
  static void Prefetch(const void*) {}

  static void DecodeE4M3(const std::byte* codes, std::byte* tile) {
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 32; ++i) {
        const uint16_t bits = BF16OfE4M3(static_cast<uint8_t>(codes[CodeOffset(r, i)]));
        __builtin_memcpy(tile + r * 64 + i * 2, &bits, 2);
      }
    }
  }

  static void DecodeInt4(const std::byte* scales, const std::byte* lines, std::byte* tile) {
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 32; ++i) {
        uint16_t word, scale;
        __builtin_memcpy(&word, lines + r / 4 * kInt4LineBytes + i * 2, 2);
        __builtin_memcpy(&scale, scales + i / 2 * 2, 2);
        const int q = (word >> r % 4 * 4 & 15) - 8;
        const float product = static_cast<float>(q) * AsFloat(uint32_t{scale} << 16);
        uint32_t bits = __builtin_bit_cast(uint32_t, product);
        bits += 0x7fffu + ((bits >> 16) & 1u);
        // A NaN scale makes the product NaN, which the rounding above could carry into another
        // value.
        if (product != product) bits = 0x7fc00000u;
        const auto rounded = static_cast<uint16_t>(bits >> 16);
        __builtin_memcpy(tile + r * 64 + i * 2, &rounded, 2);
      }
    }
  }

  static void AddScaled(const std::byte* partial, float scale, bool first, int rows, int columns,
                        float* c, int64_t c_stride) {
    for (int r = 0; r < rows; ++r) {
      for (int n = 0; n < columns; ++n) {
        float value;
        __builtin_memcpy(&value, partial + r * 64 + n * 4, 4);
        float& to = c[r * c_stride + n];
        // One FMA, as AddScaled of amx_kernels.cc has it, gives the same bits.
        to = __builtin_fmaf(value, scale, first ? 0.0f : to);
      }
    }
  }

  static void FinishInt8(const std::byte* sums, const float* scales, const std::byte* row_scale,
                         int64_t row_bytes, int rows, int columns, float* c, int64_t c_stride) {
    for (int r = 0; r < rows; ++r) {
      float scale;
      __builtin_memcpy(&scale, row_scale + r * row_bytes, 4);
      for (int n = 0; n < columns; ++n) {
        int32_t sum;
        __builtin_memcpy(&sum, sums + r * 64 + n * 4, 4);
        // The order of both products is the profile's (docs/numerics.md).
        c[r * c_stride + n] = static_cast<float>(sum) * scales[n] * scale;
      }
    }
  }
};

}  // namespace

const AmxKernels& EmulatedAmxKernels() {
  static constexpr AmxKernels kKernels = {.name = "emulated AMX",
                                          .gemm = &Gemm<EmulatedTiles, PlainVectors>,
                                          .gemm_int8 = &GemmInt8<EmulatedTiles, PlainVectors>};
  return kKernels;
}

}  // namespace epic::kernels
