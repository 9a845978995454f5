// The attention of a step's rows (Backend::AttentionIn, Attend, AttentionOut) on a device: which
// kernels make each operation, and the scratch memory between them. All memory is the device's; the
// calls only launch (operation_graphs.h), and results are there after the runtime's Wait.
#pragma once

#include "kernels/cuda/products.h"
#include "kernels/cuda/step_arrays.h"
#include "kernels/cuda/weights.h"

namespace epic::kernels::cuda {

class AttentionRunner {
 public:
  // All outlive this.
  AttentionRunner(DeviceHeap& heap, const Products& products, OperationGraphs& graphs)
      : runtime_(heap.runtime()),
        products_(products),
        graphs_(graphs),
        normed_(heap),
        low_normed_(heap),
        value_rows_(heap),
        first_(heap),
        q_(heap),
        nope_(heap),
        partial_values_(heap),
        partial_states_(heap) {}

  // Rows past the plan's (StepArrays::Begin) are computed like others but leave no record.
  void In(const CudaAttention& attention, const StepArrays& arrays, const KvView& kv, int layer,
          Tensor residual, Tensor query);
  // One of the launches that the step needs (StepArrays::MlaFor).
  void Attend(const CudaAttention& attention, const StepArrays& arrays, const StepArrays::Mla& mla,
              const KvView& kv, int layer, Tensor query, Tensor output);
  // Adds the o projection's product to the residual.
  void Out(const CudaAttention& attention, Tensor output, Tensor residual);

 private:
  // q_b's product, F32 [rows, heads·(nope + rope)]; `low`: that of q_a.
  const float* QueryOf(const CudaAttention& attention, int rows, const float* low);

  DeviceRuntime& runtime_;
  const Products& products_;
  OperationGraphs& graphs_;
  // Each is scratch of one operation: nothing in it outlives the operation.
  RowScratch normed_, low_normed_, value_rows_;
  Scratch first_, q_, nope_, partial_values_, partial_states_;
};

}  // namespace epic::kernels::cuda
