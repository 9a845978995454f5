// cuBLASLt as baseline and oracle: BF16 products, and FP8 ones with scales per 128 of x and per
// 128×128 of w. Without cuBLASLt at build time Make returns null.
#pragma once

#include <cstdint>
#include <functional>

namespace epic::kernels::cuda {

struct LibraryGemm {
  int rows = 0, n = 0, k = 0;
  bool fp8 = false;
  const void* x = nullptr;  // [rows, k]
  const void* w = nullptr;  // [n, k]
  // Large enough for any layout: rows·k/128 rounded up, and n·k/128² likewise. All scales should be
  // equal, so that their layout does not matter.
  const float* x_scale = nullptr;
  const float* w_scale = nullptr;
  void* out = nullptr;  // BF16 [rows, n]
};

// Launches the library's first choice; null where it has none for the problem. It lives as long as
// the process.
std::function<void()> MakeLibraryGemm(const LibraryGemm& gemm);

}  // namespace epic::kernels::cuda
