// The tile unit in plain C++, as Intel's manual describes TDPBF16PS and TDPBSSD. Included by the
// files that instantiate amx_gemm_inl.h only. Denormals must be flushed by the caller's thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace epic::kernels {
namespace {

class EmulatedTiles {
 public:
  void Configure(const int (&rows)[8]) {
    for (int t = 0; t < 8; ++t) rows_[t] = rows[t];
  }
  void Release() {}

  template <int kTile>
  void Zero() {
    __builtin_memset(data_[kTile], 0, sizeof(data_[kTile]));
  }
  template <int kTile>
  // Rows past the configured ones are not read: memory may end behind the last row.
  void Load(const void* from, int64_t stride_bytes) {
    for (int r = 0; r < rows_[kTile]; ++r) {
      __builtin_memcpy(data_[kTile][r], static_cast<const char*>(from) + r * stride_bytes, 64);
    }
  }
  template <int kTile>
  void Store(void* to, int64_t stride_bytes) const {
    for (int r = 0; r < rows_[kTile]; ++r) {
      __builtin_memcpy(static_cast<char*>(to) + r * stride_bytes, data_[kTile][r], 64);
    }
  }

  // C += A·B. Products of even and of odd inputs are summed apart, by fused multiply-add from 0.
  template <int kC, int kA, int kB>
  void DotBF16() {
    for (int m = 0; m < rows_[kC]; ++m) {
      // TDPBF16PS sums even and odd inputs apart, from 0, and only then adds to C (Intel SDM). So a
      // tile of 32 inputs is a step of the family's tree.
      float even[16] = {};
      float odd[16] = {};
      for (int k = 0; k < 16; ++k) {
        const float a_even = FirstOfPair(data_[kA][m][k]);
        const float a_odd = SecondOfPair(data_[kA][m][k]);
        for (int n = 0; n < 16; ++n) {
          even[n] = __builtin_fmaf(a_even, FirstOfPair(data_[kB][k][n]), even[n]);
          odd[n] = __builtin_fmaf(a_odd, SecondOfPair(data_[kB][k][n]), odd[n]);
        }
      }
      for (int n = 0; n < 16; ++n) {
        const float sum = ToFloat(data_[kC][m][n]) + (even[n] + odd[n]);
        __builtin_memcpy(&data_[kC][m][n], &sum, 4);
      }
    }
  }

  template <int kC, int kA, int kB>
  void DotInt8() {
    for (int m = 0; m < rows_[kC]; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 16; ++n) {
          for (int i = 0; i < 32; i += 8) {
            // Sums wrap as the instruction's do; kInt8InputsMax keeps them from it.
            const int product = static_cast<int8_t>(data_[kA][m][k] >> i) *
                                static_cast<int8_t>(data_[kB][k][n] >> i);
            data_[kC][m][n] += static_cast<uint32_t>(product);
          }
        }
      }
    }
  }

 private:
  static float ToFloat(uint32_t bits) { return __builtin_bit_cast(float, bits); }
  static float FirstOfPair(uint32_t pair) { return ToFloat(pair << 16); }
  static float SecondOfPair(uint32_t pair) { return ToFloat(pair & 0xffff0000u); }

  // These are the eight registers of 16 rows of 64 bytes. They hold garbage until they are loaded
  // or zeroed, although the hardware clears them when it is configured: no kernel may rely on that.
  alignas(64) uint32_t data_[8][16][16];
  int rows_[8];
};

}  // namespace
}  // namespace epic::kernels
