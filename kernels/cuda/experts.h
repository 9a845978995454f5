// Gated MLPs on a device: one for all rows, or of each expert for the rows that chose it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/products.h"
#include "kernels/cuda/weights.h"
#include "kernels/expert_order.h"

namespace epic::kernels::cuda {

class MlpRunner {
 public:
  MlpRunner(DeviceHeap& heap, const Products& products)
      : heap_(heap),
        runtime_(heap.runtime()),
        products_(products),
        input_(heap),
        packed_(heap),
        product_(heap),
        here_(heap),
        gate_up_(heap),
        answers_(heap),
        out_(heap),
        tables_(heap) {}

  // out BF16 [T, hidden] ← mlp(rows).
  void Apply(const CudaMlp& mlp, Tensor rows, Tensor out);
  // As Backend::Experts. Experts of one type of weights are computed together, in one launch per
  // product for so many rows as the scratch memory is to hold.
  void Experts(std::span<const Mlp* const> experts, Tensor rows, std::span<const ExpertRow> pairs,
               Tensor out);

 private:
  // Groups of one batch, and where their rows lie.
  struct Batch {
    std::span<const ExpertOrder::Group> groups;
    GemmLayout layout = GemmLayout::kMasked;
    int places = 0;  // of each group; contiguous: of all
  };
  // What a batch tells the kernels.
  struct Tables {
    int pairs = 0;
    const int32_t* row = nullptr;    // of each pair, among the rows given
    const int32_t* pair = nullptr;   // its number among the pairs given
    const int32_t* place = nullptr;  // where its row lies in the packed rows
    RowGroups groups;
    const TensorMap* gate_up_maps = nullptr;
    const TensorMap* down_maps = nullptr;
    const float* const* gate_up_scales = nullptr;
    const float* const* down_scales = nullptr;
  };

  // `count` rows as they are, and quantised where `forms` says so.
  DeviceRows Input(RowForms forms, const BF16* x, int count, int columns);
  static Batch Place(std::span<const ExpertOrder::Group> groups);
  void RunBatch(std::span<const Mlp* const> experts, std::span<const ExpertRow> pairs,
                const Batch& batch, const DeviceRows& x, BF16* out);
  Tables Upload(std::span<const Mlp* const> experts, std::span<const ExpertRow> pairs,
                const Batch& batch);

  DeviceHeap& heap_;
  DeviceRuntime& runtime_;
  const Products& products_;
  RowScratch input_, packed_, product_;
  Scratch here_, gate_up_, answers_, out_, tables_;
  ExpertOrder order_;
};

}  // namespace epic::kernels::cuda
