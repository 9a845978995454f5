// A small random model of two layers (dense, then mixture of experts) for tests that run any
// Backend through whole steps.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/testing/random.h"

namespace epic::kernels {

struct ToyShape {
  int vocab = 331;
  int intermediate = 84;
  DType dtype = DType::kBF16;         // of the large matrices
  DType router_dtype = DType::kBF16;  // of the router
  AttentionShape attention;
  GateShape gate;
};

// Shapes that no tile, 32 or 128 divides.
ToyShape SmallToyShape();

// A matrix and its bytes as a checkpoint would hold them.
class ToyMatrix {
 public:
  ToyMatrix() = default;
  ToyMatrix(Random& random, DType dtype, int64_t rows, int64_t cols);
  SourceMatrix source() const;
  std::vector<uint8_t>& bytes() { return bytes_; }
  std::vector<float>& scales() { return scales_; }

 private:
  DType dtype_ = DType::kBF16;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  std::vector<uint8_t> bytes_;
  std::vector<float> scales_;
};

class ToyModel {
 public:
  ToyModel(const ToyShape& shape, uint64_t seed);

  const ToyShape& shape() const { return shape_; }

  // The token at a position of a sequence, in every run.
  int Token(int sequence, int position) const {
    return (sequence * 131 + position * 37) % shape_.vocab;
  }
  // Makes the embedding of one token NaN.
  void BreakToken(int token);

 private:
  friend class ToyRun;
  struct Layer {
    std::vector<float> input_norm, q_a_norm, kv_a_norm, mlp_norm;
    ToyMatrix q_a, q, kv_a, kv_b, o;
  };
  struct MlpSource {
    ToyMatrix gate, up, down;
  };
  MlpSource MakeMlp(Random& random) const;

  ToyShape shape_;
  ToyMatrix embedding_, head_, router_;
  std::vector<float> final_norm_, correction_bias_;
  std::vector<Layer> layers_;
  MlpSource dense_, shared_;
  std::vector<MlpSource> experts_;
};

// Some rows of one sequence in a step.
struct ToyChunk {
  int sequence = 0;
  int rows = 0;
};

// The model on a backend, with its own pages.
class ToyRun {
 public:
  ToyRun(const ToyModel& model, Backend& backend, int sequences, int positions_max);

  // Positions of a sequence below `length` are its prompt from now on; without: none.
  void SetPrompt(int sequence, int length) { prompt_lengths_[sequence] = length; }
  // One step; the logits of each row are kept by (sequence, position).
  void Step(const std::vector<ToyChunk>& chunks);

  // Bit patterns, NaN as one value.
  const std::map<std::pair<int, int>, std::vector<uint32_t>>& logits() const { return logits_; }
  const std::map<std::pair<int, int>, std::vector<float>>& values() const { return values_; }
  // The record of a position, as stored.
  std::vector<std::byte> Record(int layer, int sequence, int position) const;
  std::byte* RecordAddress(int layer, int sequence, int position) const;

 private:
  StepPlan Plan(const std::vector<ToyChunk>& chunks);
  int32_t Page(int sequence, int index) const;
  void RunExperts(int rows, const GateResult& chosen, Tensor shared, Tensor residual);
  // The step's next; it lies where that of the last step lay, if it is as large.
  Tensor NewTensor(DType dtype, int64_t rows, int64_t cols, MemoryUse use);
  // In the backend's memory for the run.
  Tensor Upload(DType dtype, int64_t rows, int64_t cols, const void* data);

  const ToyModel& model_;
  Backend& backend_;
  int sequences_;
  int pages_per_sequence_;
  KvLayout layout_;
  Rope rope_;
  Tensor embedding_, final_norm_;
  std::vector<Tensor> mlp_norms_;
  std::unique_ptr<Matrix> head_;
  std::unique_ptr<Gate> gate_;
  std::vector<std::unique_ptr<Attention>> attention_;
  std::unique_ptr<Mlp> dense_, shared_;
  std::vector<std::unique_ptr<Mlp>> experts_;
  std::vector<std::unique_ptr<Memory>> uploads_, slabs_;
  std::vector<std::byte*> slab_pointers_;
  std::vector<int> lengths_, prompt_lengths_;     // [sequences]
  std::vector<std::unique_ptr<Memory>> tensors_;  // of the last step
  size_t tensor_count_ = 0;                       // of this one, so far
  std::map<std::pair<int, int>, std::vector<uint32_t>> logits_;
  std::map<std::pair<int, int>, std::vector<float>> values_;
};

// Of each (sequence, position), as ToyRun::logits; a schedule is its steps.
using Logits = std::map<std::pair<int, int>, std::vector<uint32_t>>;
using Schedule = std::vector<std::vector<ToyChunk>>;

// A run of up to three sequences of up to 640 positions; prompts: the length of each one's.
Logits RunAll(const ToyModel& model, Backend& backend, const std::vector<int>& prompts,
              const Schedule& schedule);
Logits RunAll(const ToyModel& model, Backend& backend, const Schedule& schedule);

}  // namespace epic::kernels
