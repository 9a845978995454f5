// Products of rows with weights of either type, each row in the form that the weight wants.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/block_gemm.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/operation_graphs.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/tile_choice.h"
#include "kernels/cuda/weights.h"

namespace epic::kernels::cuda {

// Rows of `groups` groups of `places` places each: as BF16, quantised, or both. A view, which owns
// nothing.
struct DeviceRows {
  int groups = 1;
  int places = 0;
  int columns = 0;
  BF16* rounded = nullptr;
  uint8_t* codes = nullptr;
  float* scales = nullptr;  // [groups, ceil(columns/128), scale_stride]
  int scale_stride = 0;

  RowOutputs outputs() const { return {rounded, codes, scales, scale_stride}; }
};

// The forms of rows that some weights want: FP8 weights meet quantised rows, BF16 ones rounded
// rows.
struct RowForms {
  bool rounded = false;
  bool quantised = false;

  // Several weights may want both forms of the same rows.
  static RowForms Of(std::initializer_list<const DeviceMatrix*> weights);
};

// Scratch for rows in one form or both.
class RowScratch {
 public:
  explicit RowScratch(DeviceHeap& heap) : rounded_(heap), codes_(heap), scales_(heap) {}

  // Valid until the next call.
  DeviceRows Get(RowForms forms, int groups, int places, int columns);

 private:
  Scratch rounded_, codes_, scales_;
};

// Groups of rows, each with a weight of its own; all weights have one type and shape.
struct RowGroups {
  GemmLayout layout = GemmLayout::kMasked;  // or kContiguous
  int count = 0;
  const int32_t* segment_group = nullptr;  // contiguous
  const int32_t* group_rows = nullptr;     // masked
};

// Launches products, each with the smallest admitted tile that holds its rows. Any tile gives the
// same bits (tile_choice.h).
class Products {
 public:
  Products(DeviceHeap& heap, OperationGraphs& graphs, TileChoice tiles)
      : runtime_(heap.runtime()), graphs_(graphs), tiles_(std::move(tiles)) {}

  const TileChoice& tiles() const { return tiles_; }

  // out [rows, n] (output)= x·wᵀ
  void Multiply(const DeviceMatrix& w, const DeviceRows& x, GemmOutput output, void* out) const;
  // Per head, in BF16: out [rows, heads, out_stride], of which the first n of each head are
  // written, ← x [rows, heads, k] · w [heads, n, k].
  void MultiplyHeads(const BF16* w, int heads, int n, int k, int rows, const BF16* x, BF16* out,
                     int out_stride) const;
  // Multiplies each group's rows by its own weight; `shape` is any of these weights.
  void MultiplyGroups(const DeviceMatrix& shape, const RowGroups& groups, const TensorMap* maps,
                      const float* const* scales, const DeviceRows& x, GemmOutput output,
                      void* out) const;
  // The column tile for which the maps of MultiplyGroups must be made.
  int ColumnTileFor(GemmType type, GemmLayout layout, int places) const {
    return ColumnTile(tiles_.For(type, layout, places));
  }

 private:
  // Adds the tile and the number of multiprocessors.
  void Launch(BlockGemmArguments a) const;

  DeviceRuntime& runtime_;
  OperationGraphs& graphs_;
  const TileChoice tiles_;
};

}  // namespace epic::kernels::cuda
