// Gated MLPs on a device: one for all rows, or of each expert for the rows that chose it.
//
// Experts: rows are quantised once if any weights are FP8, copied to their places expert by expert
// (PackRows), multiplied by gate and up in one product, then by down, and copied back to the pairs'
// order. What differs from step to step (which rows, which weights) is in tables that go to the
// device before the launches.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/operation_graphs.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/weights.h"
#include "kernels/pairs_by_expert.h"

namespace epic::kernels::cuda {

class MlpRunner {
 public:
  MlpRunner(DeviceHeap& heap, const Products& products, OperationGraphs& graphs)
      : heap_(heap),
        runtime_(heap.runtime()),
        products_(products),
        graphs_(graphs),
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
  // product for as many rows as the scratch memory holds. Their weights are found through tables,
  // so that small batches of every layer replay one recording.
  void Experts(std::span<const Mlp* const> experts, Tensor rows, std::span<const ExpertRow> pairs,
               Tensor out);

 private:
  // Groups of one batch, and where their rows lie.
  struct Batch {
    std::span<const PairsByExpert::Group> groups;
    GemmLayout layout = GemmLayout::kMasked;
    int places = 0;  // of each group; contiguous: of all
    // The numbers of groups and pairs for which the kernels are launched; those that the batch
    // lacks are empty.
    int group_capacity = 0;
    int pair_capacity = 0;
    bool replayed = false;
  };
  // The tables of a batch, in device memory.
  struct Tables {
    int pairs = 0;
    const int32_t* row = nullptr;    // of each pair, among the rows given
    const int32_t* pair = nullptr;   // its number among the pairs given, or −1: it is none
    const int32_t* place = nullptr;  // where its row lies in the packed rows, or −1
    RowGroups groups;
    const TensorMap* gate_up_maps = nullptr;
    const TensorMap* down_maps = nullptr;
    const float* const* gate_up_scales = nullptr;
    const float* const* down_scales = nullptr;
  };

  // Launches only what a type of weights needs: `count` rows as they are, and quantised where
  // `forms` says so.
  DeviceRows Input(RowForms forms, const BF16* x, int count, int columns);
  // How a batch's rows are laid out for the products.
  Batch Place(std::span<const PairsByExpert::Group> groups) const;
  void RunBatch(std::span<const Mlp* const> experts, std::span<const ExpertRow> pairs,
                const Batch& batch, const DeviceRows& x, BF16* out);
  // `mlp`: any of the batch's.
  void LaunchBatch(const CudaMlp& mlp, const Batch& batch, const Tables& tables,
                   const DeviceRows& x, BF16* out);
  Tables Upload(std::span<const Mlp* const> experts, std::span<const ExpertRow> pairs,
                const Batch& batch);

  DeviceHeap& heap_;
  DeviceRuntime& runtime_;
  const Products& products_;
  OperationGraphs& graphs_;
  RowScratch input_, packed_, product_;
  // here_ and out_ stand in for rows and answers in memory that no kernel may touch.
  Scratch here_, gate_up_, answers_, out_, tables_;
  // The order of the pairs of the current call, by expert.
  PairsByExpert order_;
};

}  // namespace epic::kernels::cuda
