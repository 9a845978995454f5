// Which row tiles of block_gemm.h may be used: those that gave the same row the same bits as the
// others in a test on this very device. The rest are passed over, and `rejections` names them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/block_gemm.h"
#include "kernels/cuda/device_memory.h"

namespace epic::kernels::cuda {

// BlockGemm, or in a test one that errs.
using TileProduct = std::function<void(Stream, const BlockGemmArguments&)>;

class TileChoice {
 public:
  // Multiplies one problem in every tile, beside many rows and few, in groups and without. A tile
  // is admitted if its results are near the exact ones and have the bits of the first admitted,
  // from the largest down. Takes milliseconds on a card.
  static TileChoice Test(DeviceHeap& heap, const TileProduct& product);

  // The tile for `rows` rows: the smallest that holds them if it is admitted, else a larger one,
  // else the largest. At least one tile of that type must be admitted.
  int For(GemmType type, GemmLayout layout, int rows) const;
  // The admitted row tiles, ascending. Empty: no tile of that type can be trusted.
  const std::vector<int>& admitted(GemmType type) const {
    return admitted_[type == GemmType::kE4M3 ? 0 : 1];
  }
  // A line for each tile that is not used: which and why.
  const std::vector<std::string>& rejections() const { return rejections_; }

 private:
  void TestType(DeviceHeap& heap, const TileProduct& product, GemmType type);

  std::vector<int> admitted_[2];  // ascending
  std::vector<std::string> rejections_;
};

}  // namespace epic::kernels::cuda
