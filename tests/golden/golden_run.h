// A checkpoint of tests/golden/data on any backend: what transformers said, and whole steps in any
// chunking and mix of sequences.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/local_exchange.h"
#include "model/model.h"
#include "model/sampler.h"
#include "model/step.h"

namespace epic::golden {

// golden.safetensors: sequences, and the float32 logits of transformers for each position.
struct Golden {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<std::vector<std::vector<float>>> logits;  // [sequence][position][vocab]
};
absl::StatusOr<Golden> ReadGolden(const std::string& folder);

// Logits by (sequence, position).
using Logits = std::map<std::pair<int, int>, std::vector<float>>;

// The experts chosen at (sequence, position), layer after layer.
using Choices = std::map<std::pair<int, int>, std::vector<int32_t>>;

// Rows of one sequence in one step; positions follow on from the steps before.
struct Chunk {
  int sequence = 0;
  int rows = 0;
};
using Schedule = std::vector<std::vector<Chunk>>;  // steps

// Each sequence alone, in chunks of at most `rows`.
Schedule OneByOne(const std::vector<std::vector<int32_t>>& sequences, int rows);
// All sequences side by side, in chunks whose sizes change from step to step.
Schedule SideBySide(const std::vector<std::vector<int32_t>>& sequences);

class GoldenModel {
 public:
  // Reads folder's checkpoint and packs it for `backend`, which outlives the model.
  static absl::StatusOr<std::unique_ptr<GoldenModel>> Load(const std::string& folder,
                                                           kernels::Backend& backend);

  const model::Model& model() const { return *model_; }
  // Computes every sequence as `schedule` says, as a prompt, from empty pages. The pages of
  // sequences are interleaved and hold NaN where nothing was written.
  Logits Run(const std::vector<std::vector<int32_t>>& sequences, const Schedule& schedule);
  // Of the last Run.
  const Choices& choices() const { return choices_; }
  // The most likely next tokens after `prompt`, until `stop` or `count`.
  std::vector<int32_t> Greedy(const std::vector<int32_t>& prompt, int32_t stop, int count);

 private:
  GoldenModel(kernels::Backend& backend, std::unique_ptr<model::Model> model)
      : backend_(backend), model_(std::move(model)) {}
  void StartPages(int sequence_count, int length_max);
  // The rows' logits, in order.
  std::vector<std::vector<float>> Step(const std::vector<std::vector<int32_t>>& sequences,
                                       const std::vector<Chunk>& chunks);

  kernels::Backend& backend_;
  std::unique_ptr<model::Model> model_;
  int sequence_count_ = 0;
  int pages_per_sequence_ = 0;
  std::vector<std::unique_ptr<kernels::Memory>> slabs_;
  std::vector<std::byte*> slab_pointers_;
  std::vector<int> lengths_;
  Choices choices_;
};

// Over all logits in order, as 16 hex digits.
std::string HashOf(const Logits& logits);

}  // namespace epic::golden
