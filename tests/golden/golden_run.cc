#include "tests/golden/golden_run.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "model/safetensors.h"

namespace epic::golden {
namespace {

template <typename T>
T ValueAt(const std::string& file, const model::SafetensorsEntry& entry, int64_t index) {
  T value;
  std::memcpy(&value, file.data() + entry.begin + index * int64_t{sizeof(T)}, sizeof(T));
  return value;
}

// Every expert is here, and what each row of a step chose is written down.
class RecordingExchange : public model::ExpertExchange {
 public:
  RecordingExchange(const model::Model& model, kernels::Backend& backend, int rows)
      : local_(model, backend), chosen_(rows) {}

  Ticket Begin(const model::ExpertDispatch& dispatch) override {
    for (int64_t row = 0; row < dispatch.experts.rows; ++row) {
      const int32_t* experts = dispatch.experts.Row<int32_t>(row);
      chosen_[row].insert(chosen_[row].end(), experts, experts + dispatch.experts.cols);
    }
    return local_.Begin(dispatch);
  }
  bool Ready(Ticket ticket) override { return local_.Ready(ticket); }
  absl::Status Finish(Ticket ticket, kernels::Tensor out) override {
    return local_.Finish(ticket, out);
  }

  const std::vector<std::vector<int32_t>>& chosen() const { return chosen_; }

 private:
  model::LocalExchange local_;
  std::vector<std::vector<int32_t>> chosen_;  // [row]
};

}  // namespace

absl::StatusOr<Golden> ReadGolden(const std::string& folder) {
  std::ifstream stream(absl::StrCat(folder, "/golden.safetensors"), std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(stream)), {});
  ASSIGN_OR_RETURN(
      const model::SafetensorsHeader header,
      model::ParseSafetensors({reinterpret_cast<const std::byte*>(file.data()), file.size()},
                              "golden.safetensors"));
  const model::SafetensorsEntry* ids = nullptr;
  const model::SafetensorsEntry* logits = nullptr;
  for (const model::SafetensorsEntry& entry : header.entries) {
    if (entry.name == "input_ids") ids = &entry;
    if (entry.name == "logits") logits = &entry;
  }
  if (ids == nullptr || logits == nullptr || logits->dtype != "F32") {
    return absl::InvalidArgumentError("golden.safetensors needs input_ids and F32 logits");
  }
  const int64_t length = ids->shape.back();
  const int64_t count = ids->shape.size() == 1 ? 1 : ids->shape[0];
  const int64_t vocab = logits->shape.back();
  Golden golden;
  for (int64_t s = 0; s < count; ++s) {
    golden.sequences.emplace_back();
    golden.logits.emplace_back();
    for (int64_t t = s * length; t < (s + 1) * length; ++t) {
      golden.sequences.back().push_back(ids->dtype == "I64"
                                            ? static_cast<int32_t>(ValueAt<int64_t>(file, *ids, t))
                                            : ValueAt<int32_t>(file, *ids, t));
      std::vector<float>& row = golden.logits.back().emplace_back(vocab);
      for (int64_t i = 0; i < vocab; ++i) row[i] = ValueAt<float>(file, *logits, t * vocab + i);
    }
  }
  return golden;
}

Schedule OneByOne(const std::vector<std::vector<int32_t>>& sequences, int rows) {
  Schedule schedule;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int length = static_cast<int>(sequences[s].size());
    for (int at = 0; at < length; at += rows) {
      schedule.push_back({{static_cast<int>(s), std::min(rows, length - at)}});
    }
  }
  return schedule;
}

Schedule SideBySide(const std::vector<std::vector<int32_t>>& sequences) {
  constexpr int kSizes[] = {1, 13, 2, 65, 1, 31, 7, 5};
  Schedule schedule;
  std::vector<int> left;
  for (const auto& sequence : sequences) left.push_back(static_cast<int>(sequence.size()));
  for (int turn = 0; std::ranges::any_of(left, [](int rows) { return rows > 0; }); ++turn) {
    std::vector<Chunk>& step = schedule.emplace_back();
    for (int s = static_cast<int>(left.size()) - 1; s >= 0; --s) {
      const int rows = std::min(left[s], kSizes[(turn + 3 * s) % 8]);
      if (rows > 0) step.push_back({s, rows});
      left[s] -= rows;
    }
  }
  return schedule;
}

absl::StatusOr<std::unique_ptr<GoldenModel>> GoldenModel::Load(const std::string& folder,
                                                               kernels::Backend& backend) {
  ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(folder));
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Checkpoint> checkpoint,
                   model::Checkpoint::Open(folder));
  ASSIGN_OR_RETURN(std::unique_ptr<model::Model> model,
                   model::Model::Load(config, *checkpoint, backend));
  return std::unique_ptr<GoldenModel>(new GoldenModel(backend, std::move(model)));
}

void GoldenModel::StartPages(int sequence_count, int length_max) {
  sequence_count_ = sequence_count;
  pages_per_sequence_ = (length_max + kernels::kPageTokens - 1) / kernels::kPageTokens;
  lengths_.assign(sequence_count, 0);
  choices_.clear();
  slabs_.clear();
  slab_pointers_.clear();
  const int64_t bytes =
      int64_t{sequence_count} * pages_per_sequence_ * model_->kv_layout().page_bytes();
  for (int layer = 0; layer < model_->config().layer_count; ++layer) {
    slabs_.push_back(backend_.Allocate(bytes, kernels::MemoryUse::kTraffic));
    slab_pointers_.push_back(slabs_.back()->data());
    std::memset(slabs_.back()->data(), 0xff, bytes);
  }
}

std::vector<std::vector<float>> GoldenModel::Step(
    const std::vector<std::vector<int32_t>>& sequences, const std::vector<Chunk>& chunks) {
  kernels::StepPlan plan;
  for (const Chunk& chunk : chunks) {
    int& length = lengths_[chunk.sequence];
    plan.sequences.push_back(
        {.first_row = plan.rows(),
         .row_count = chunk.rows,
         .first_position = length,
         .first_page = static_cast<int32_t>(plan.pages.size()),
         .prompt_length = static_cast<int32_t>(sequences[chunk.sequence].size())});
    for (int i = 0; i < chunk.rows; ++i, ++length) {
      plan.logit_rows.push_back(plan.rows());
      plan.positions.push_back(length);
      plan.row_sequence.push_back(static_cast<int32_t>(plan.sequences.size()) - 1);
      plan.token_ids.push_back(sequences[chunk.sequence][length]);
    }
    for (int page = 0; page * kernels::kPageTokens < length; ++page) {
      plan.pages.push_back((pages_per_sequence_ - 1 - page) * sequence_count_ + chunk.sequence);
    }
  }
  const kernels::KvView kv{model_->kv_layout(), slab_pointers_,
                           sequence_count_ * pages_per_sequence_};
  model::StepBuffers buffers(model_->config(), backend_, plan.rows(), plan.rows());
  RecordingExchange exchange(*model_, backend_, plan.rows());
  model::Step step(*model_, backend_, exchange, kv, plan, buffers);
  while (true) {
    const auto progress = step.Advance();
    CHECK_OK(progress.status());
    if (*progress == model::Step::Progress::kDone) break;
  }
  CHECK(std::ranges::count(step.faults(), 1) == 0);
  std::vector<std::vector<float>> logits;
  for (int row = 0; row < plan.rows(); ++row) {
    logits.emplace_back(step.logits(row).begin(), step.logits(row).end());
    const int sequence = chunks[plan.row_sequence[row]].sequence;
    choices_[{sequence, plan.positions[row]}] = exchange.chosen()[row];
  }
  return logits;
}

Logits GoldenModel::Run(const std::vector<std::vector<int32_t>>& sequences,
                        const Schedule& schedule) {
  size_t length_max = 0;
  for (const auto& sequence : sequences) length_max = std::max(length_max, sequence.size());
  StartPages(static_cast<int>(sequences.size()), static_cast<int>(length_max));
  Logits result;
  for (const std::vector<Chunk>& chunks : schedule) {
    std::vector<int> first;
    for (const Chunk& chunk : chunks) first.push_back(lengths_[chunk.sequence]);
    std::vector<std::vector<float>> logits = Step(sequences, chunks);
    size_t row = 0;
    for (size_t c = 0; c < chunks.size(); ++c) {
      for (int i = 0; i < chunks[c].rows; ++i) {
        result[{chunks[c].sequence, first[c] + i}] = std::move(logits[row++]);
      }
    }
  }
  return result;
}

std::vector<int32_t> GoldenModel::Greedy(const std::vector<int32_t>& prompt, int32_t stop,
                                         int count) {
  std::vector<std::vector<int32_t>> sequences = {prompt};
  StartPages(1, static_cast<int>(prompt.size()) + count);
  std::vector<int32_t> generated;
  int rows = static_cast<int>(prompt.size());
  while (static_cast<int>(generated.size()) < count) {
    std::vector<float> logits = Step(sequences, {{0, rows}}).back();
    const int32_t token = model::SampleToken(logits, {.temperature = 0}, prompt, generated);
    if (token == stop) break;
    generated.push_back(token);
    sequences[0].push_back(token);
    rows = 1;
  }
  return generated;
}

std::string HashOf(const Logits& logits) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const auto& [key, row] : logits) {
    for (float value : row) {
      hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001b3u;
    }
  }
  return absl::StrCat(absl::Hex(hash, absl::kZeroPad16));
}

}  // namespace epic::golden
