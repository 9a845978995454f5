// Step: one forward pass over a batch, as an object that can be resumed at every stage: per layer
// attention in three parts, Begin of the exchange, shared expert, Finish. Whoever drives it owns
// all waiting, and two steps (halves of a batch, each with a backend of its own) can take turns.
//
//   Step step(model, backend, exchange, kv, plan, buffers);
//   while (true) {
//     ASSIGN_OR_RETURN(Step::Progress progress, step.Advance());
//     if (progress == Step::Progress::kDone) break;
//     if (progress == Step::Progress::kWaiting) WaitForPeers();
//   }
//   Use(step.logits(0));
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/expert_exchange.h"
#include "model/model.h"

namespace epic::model {

// Scratch of a step in backend memory, reused from step to step, by one step at a time.
class StepBuffers {
 public:
  // For steps of up to `rows_max` rows, `logit_rows_max` of which want logits. The backend is that
  // of the steps.
  StepBuffers(const ModelConfig& config, kernels::Backend& backend, int rows_max,
              int logit_rows_max);

  // What such buffers take.
  static int64_t Bytes(const ModelConfig& config, const kernels::Backend& backend, int rows_max,
                       int logit_rows_max);

  int rows_max() const { return rows_max_; }
  int logit_rows_max() const { return logit_rows_max_; }

 private:
  friend class Step;
  enum Slot {
    kResidual,
    kQuery,
    kAttended,
    kNormed,
    kExperts,
    kWeights,
    kFaults,
    kMlpOut,
    kExpertRows,
    kLogits,
    kSlotCount
  };
  struct Shape {
    kernels::DType dtype;
    int64_t rows_per_row;  // rows of the tensor for each row of the batch
    int64_t cols;

    int64_t BytesOf(int64_t rows) const {
      return rows * rows_per_row * cols * kernels::DTypeBytes(dtype);
    }
  };
  static Shape ShapeOf(const ModelConfig& config, Slot slot);
  static kernels::MemoryUse UseOf(Slot slot);
  kernels::Tensor View(Slot slot, int64_t rows) const;

  int rows_max_;
  int logit_rows_max_;
  std::vector<Shape> shapes_;
  std::vector<std::unique_ptr<kernels::Memory>> memory_;
};

class Step {
 public:
  enum class Progress { kRunning, kWaiting, kDone };

  // Everything given outlives the step; `plan` stays unchanged and fits `buffers`. The pages that
  // it names lie in `kv`.
  Step(const Model& model, kernels::Backend& backend, ExpertExchange& exchange,
       const kernels::KvView& kv, const kernels::StepPlan& plan, StepBuffers& buffers);

  // Runs one stage. kWaiting: nothing was done, the exchange is not ready. An error (of the
  // exchange) ends the step. Not to be called after kDone or an error.
  absl::StatusOr<Progress> Advance();

  // How many pairs of a row and a record a stage of attention may hold, a row at least; stages end
  // earlier then, and nothing else changes. Unlimited at first, and always where the backend does
  // not attend in slices.
  void set_attend_pairs_max(int64_t pairs) { attend_pairs_max_ = pairs; }
  // Such pairs computed so far, in all layers.
  int64_t attended_pairs() const { return attended_pairs_; }

  // Where the step is: for reports.
  int layer() const { return layer_; }
  const char* stage_name() const;

  // After kDone, until the buffers' next step.
  // F32 [vocab] of row plan.logit_rows[index].
  std::span<float> logits(int index) const;
  // [rows] 1: a NaN was met in that row, or its logits are not all finite; what follows is void.
  std::span<const uint8_t> faults() const { return faults_; }

 private:
  enum class Stage {
    kStart,
    kAttentionIn,
    kAttend,
    kAttentionOut,
    kBegin,
    kShared,
    kFinish,
    kHead,
    kDone
  };

  void Start();
  void RunAttentionIn();
  int AttendEnd();
  void RunAttend();
  void RunAttentionOut();
  void RunDense();
  void BeginExchange();
  void RunShared();
  absl::Status FinishExchange();
  void RunHead();
  void EnterNextLayer();

  const Model& model_;
  kernels::Backend& backend_;
  ExpertExchange& exchange_;
  const kernels::KvView& kv_;
  const kernels::StepPlan& plan_;
  StepBuffers& buffers_;
  const int rows_;  // of the tensors: Backend::StepRows
  Stage stage_ = Stage::kStart;
  int layer_ = 0;
  int attended_rows_ = 0;  // of the layer
  int64_t attend_pairs_max_ = std::numeric_limits<int64_t>::max();
  int64_t attended_pairs_ = 0;
  ExpertExchange::Ticket ticket_ = 0;
  kernels::Tensor residual_, shared_;
  kernels::GateResult chosen_;
  std::vector<uint8_t> faults_;
};

}  // namespace epic::model
