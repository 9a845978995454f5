// Weights on a device. What the checkpoint has in FP8 stays so, with its block scales; everything
// else is BF16. They go there straight from the mapped checkpoint. Immutable once loaded, and freed
// with their handle.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/block_gemm.h"
#include "kernels/cuda/device_memory.h"

namespace epic::kernels::cuda {

// A weight [n, k], row-major, with rows of a multiple of 16 bytes.
struct DeviceMatrix {
  GemmType type = GemmType::kBF16;
  int n = 0;
  int k = 0;
  const void* data = nullptr;
  const float* scales = nullptr;  // [ceil(n/128), ceil(k/128)] of kE4M3
  std::unique_ptr<DeviceMemory> memory;
  std::unique_ptr<DeviceMemory> scale_memory;  // apart: memory comes in steps of 2 MiB
};

template <typename T>
struct DeviceArray {
  const T* data = nullptr;  // null: it is empty
  std::unique_ptr<DeviceMemory> memory;
};

// The maps by which bulk copies bring a weight to products of groups, for either column tile.
struct GroupMaps {
  TensorMap of_64, of_128;

  explicit GroupMaps(const DeviceMatrix& w)
      : of_64(WeightMap(w.type, w.data, w.n, w.k, 64)),
        of_128(WeightMap(w.type, w.data, w.n, w.k, 128)) {}
  const TensorMap& of(int column_tile) const { return column_tile == 64 ? of_64 : of_128; }
};

struct CudaMatrix : Matrix {
  DeviceMatrix weight;
};

// Gate and up are one matrix: up begins at row up_offset, a multiple of 128 in FP8.
struct CudaMlp : Mlp {
  int up_offset = 0;
  DeviceMatrix gate_up, down;
  std::unique_ptr<GroupMaps> gate_up_maps, down_maps;
};

// The products with the normed rows are one: q_a, or q where there is none, and from row `kv_row`
// on (a multiple of 128 in FP8) kv_a.
struct CudaAttention : Attention {
  DeviceArray<float> input_norm, q_a_norm, kv_a_norm;
  int kv_row = 0;
  DeviceMatrix first, q_b, o;  // q_b only where there is q_a
  DeviceArray<BF16> w_uk;      // [heads, kv_rank, nope]
  DeviceArray<BF16> w_uv;      // [heads, v, kv_rank]
};

// The router as a sum of BF16 matrices: one that is BF16 already, else as many, at most three, as
// make up its FP32 values. Its logits are FP32 sums of all their products, largest first.
struct CudaGate : Gate {
  std::vector<DeviceMatrix> parts;
  DeviceArray<float> bias;
};

// Thread-safe.
class WeightLoader {
 public:
  explicit WeightLoader(DeviceHeap& heap) : heap_(heap) {}

  std::unique_ptr<CudaMatrix> LoadMatrix(const SourceMatrix& source) const;
  std::unique_ptr<CudaMlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                                   const SourceMatrix& down) const;
  std::unique_ptr<CudaAttention> LoadAttention(const AttentionSource& source) const;
  std::unique_ptr<CudaGate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                     std::span<const float> correction_bias) const;

 private:
  // The parts' rows one after another; in FP8 each part begins at a multiple of 128.
  DeviceMatrix Load(std::span<const SourceMatrix> parts) const;
  void LoadBF16(const SourceMatrix& source, std::byte* to) const;
  template <typename T>
  DeviceArray<T> Load(std::span<const T> values) const;

  DeviceHeap& heap_;
};

}  // namespace epic::kernels::cuda
