// BenchRun runs steps of a model on a backend, without a server. It times them and counts the bytes
// that each must read at least.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "kernels/backend.h"
#include "model/local_exchange.h"
#include "model/model.h"
#include "model/step.h"

namespace epic::cli {

struct BenchLimits {
  int sequences = 1;    // side by side
  int context_max = 0;  // tokens before the timed ones, of each sequence
  int prompt_max = 1;   // tokens of a timed prompt (of the first sequence alone)
  int decode_max = 1;   // steps of a timed decode
};

struct TimedStep {
  double seconds = 0;
  // The weights of the experts that were chosen, all other weights, and the KV records that the
  // rows see. Each is counted once.
  int64_t floor_bytes = 0;
};

class BenchRun {
 public:
  // The arguments outlive this object.
  BenchRun(const model::Model& model, kernels::Backend& backend, Clock& clock,
           const BenchLimits& limits);

  // The bytes of all packed weights and of the embedding.
  static int64_t WeightBytes(const model::Model& model);
  // The bytes of the KV pages and of the step buffers that such a run allocates.
  static int64_t Bytes(const model::Model& model, const kernels::Backend& backend,
                       const BenchLimits& limits);

  // Gives every sequence `context` records: a few are computed, the rest are copies of them.
  void SetContext(int context);
  // Computes `rows` more tokens of the first sequence, as a prompt.
  TimedStep Prefill(int rows) { return Advance(1, rows, /*prompt=*/true); }
  // Computes one more token of each of the first `batch` sequences.
  TimedStep Decode(int batch) { return Advance(batch, 1, /*prompt=*/false); }

 private:
  // Every expert is here, and the bytes of those that are chosen are counted.
  class CountingExchange : public model::ExpertExchange {
   public:
    CountingExchange(const model::Model& model, kernels::Backend& backend)
        : model_(model), local_(model, backend) {}
    Ticket Begin(const model::ExpertDispatch& dispatch) override;
    bool Ready(Ticket ticket) override { return local_.Ready(ticket); }
    absl::Status Finish(Ticket ticket, kernels::Tensor out) override {
      return local_.Finish(ticket, out);
    }
    int64_t TakeBytes() { return std::exchange(bytes_, 0); }

   private:
    const model::Model& model_;
    model::LocalExchange local_;
    std::vector<bool> chosen_;
    int64_t bytes_ = 0;
  };

  static int PagesOf(const BenchLimits& limits, int sequence);
  TimedStep Advance(int sequences, int rows, bool prompt);
  kernels::StepPlan Plan(int sequences, int rows, bool prompt);
  void CopyPages(int from_count);

  const model::Model& model_;
  kernels::Backend& backend_;
  Clock& clock_;
  const BenchLimits limits_;
  int64_t dense_bytes_ = 0;      // of all weights but the experts'
  std::vector<int> first_page_;  // [sequences + 1]
  std::vector<int> lengths_;     // [sequences]
  CountingExchange exchange_;
  model::StepBuffers buffers_;
  std::vector<std::unique_ptr<kernels::Memory>> slabs_;
  std::vector<std::byte*> slab_pointers_;
  uint32_t random_ = 1;
};

}  // namespace epic::cli
