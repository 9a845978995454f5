#include "model/step.h"

#include <algorithm>

#include "base/check.h"
#include "base/status.h"
#include "model/vocabulary_passes.h"

namespace epic::model {

using kernels::DType;
using kernels::Tensor;

StepBuffers::Shape StepBuffers::ShapeOf(const ModelConfig& config, Slot slot) {
  const int64_t hidden = config.hidden_size;
  const int64_t heads = config.head_count;
  const int64_t k = config.experts_per_token;
  switch (slot) {
    case kResidual:
      return {DType::kF32, 1, hidden};
    case kQuery:
      return {DType::kBF16, 1, heads * (config.kv_lora_rank + config.qk_rope_head_dim)};
    case kAttended:
      return {DType::kBF16, 1, heads * config.kv_lora_rank};
    case kNormed:
    case kMlpOut:
      return {DType::kBF16, 1, hidden};
    case kExperts:
      return {DType::kI32, 1, k};
    case kWeights:
      return {DType::kF32, 1, k};
    case kFaults:
      return {DType::kU8, 1, 1};
    case kExpertRows:
      return {DType::kBF16, k, hidden};
    case kLogits:
      return {DType::kF32, 1, config.vocab_size};
    case kSlotCount:
      break;
  }
  return {};
}

kernels::MemoryUse StepBuffers::UseOf(Slot slot) {
  switch (slot) {
    // The exchange reads the experts, the step the faults, the sampler the logits, all on the host.
    case kExperts:
    case kFaults:
    case kLogits:
      return kernels::MemoryUse::kHost;
    // Rows that leave for other ranks, and those that come back.
    case kNormed:
    case kExpertRows:
      return kernels::MemoryUse::kTraffic;
    default:
      return kernels::MemoryUse::kOperations;
  }
}

int64_t StepBuffers::Bytes(const ModelConfig& config, const kernels::Backend& backend, int rows_max,
                           int logit_rows_max) {
  const int rows = backend.StepRows(rows_max);
  int64_t total = 0;
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<Slot>(i);
    total += ShapeOf(config, slot).BytesOf(slot == kLogits ? logit_rows_max : rows);
  }
  return total;
}

StepBuffers::StepBuffers(const ModelConfig& config, kernels::Backend& backend, int rows_max,
                         int logit_rows_max)
    : rows_max_(rows_max), logit_rows_max_(logit_rows_max) {
  const int rows = backend.StepRows(rows_max);
  for (int i = 0; i < kSlotCount; ++i) {
    const auto slot = static_cast<Slot>(i);
    const Shape& shape = shapes_.emplace_back(ShapeOf(config, slot));
    const int64_t bytes = shape.BytesOf(slot == kLogits ? logit_rows_max : rows);
    // Even buffers without logits have a tensor of them, of no rows.
    memory_.push_back(backend.Allocate(std::max<int64_t>(bytes, 1), UseOf(slot)));
  }
}

Tensor StepBuffers::View(Slot slot, int64_t rows) const {
  const Shape& shape = shapes_[slot];
  return {.dtype = shape.dtype,
          .rows = rows * shape.rows_per_row,
          .cols = shape.cols,
          .data = memory_[slot]->data()};
}

Step::Step(const Model& model, kernels::Backend& backend, ExpertExchange& exchange,
           const kernels::KvView& kv, const kernels::StepPlan& plan, StepBuffers& buffers)
    : model_(model),
      backend_(backend),
      exchange_(exchange),
      kv_(kv),
      plan_(plan),
      buffers_(buffers),
      rows_(backend.StepRows(plan.rows())) {
  const int rows = plan.rows();
  CHECK(plan.roles.empty() || plan.roles.size() == plan.token_ids.size());
  CHECK_EQ(plan.positions.size(), plan.token_ids.size());
  CHECK(rows > 0 && rows <= buffers.rows_max_) << rows << " rows, buffers " << buffers.rows_max_;
  CHECK_LE(static_cast<int>(plan.logit_rows.size()), buffers.logit_rows_max_);
  residual_ = buffers.View(StepBuffers::kResidual, rows_);
  chosen_ = {.rows = buffers.View(StepBuffers::kNormed, rows_),
             .experts = buffers.View(StepBuffers::kExperts, rows_),
             .weights = buffers.View(StepBuffers::kWeights, rows_),
             .faults = buffers.View(StepBuffers::kFaults, rows_)};
}

// One stage a call. Nothing here waits: where an answer is missing the caller gets its turn back,
// so that it can serve the rows for which others wait.
absl::StatusOr<Step::Progress> Step::Advance() {
  switch (stage_) {
    case Stage::kStart:
      Start();
      break;
    case Stage::kAttentionIn:
      RunAttentionIn();
      break;
    case Stage::kAttend:
      RunAttend();
      break;
    case Stage::kAttentionOut:
      RunAttentionOut();
      break;
    case Stage::kBegin:
      BeginExchange();
      break;
    case Stage::kShared:
      RunShared();
      break;
    case Stage::kFinish:
      if (!exchange_.Ready(ticket_)) return Progress::kWaiting;
      RETURN_IF_ERROR(FinishExchange());
      break;
    case Stage::kHead:
      RunHead();
      return Progress::kDone;
    case Stage::kDone:
      CHECK(false) << "the step is over";
  }
  return Progress::kRunning;
}

// The backend gets the plan once; all layers read what it makes of it.
void Step::Start() {
  faults_.assign(plan_.rows(), 0);
  backend_.BeginStep(plan_, model_.rope());
  backend_.Embed(plan_, model_.embedding(), residual_);
  stage_ = Stage::kAttentionIn;
}

void Step::RunAttentionIn() {
  backend_.AttentionIn(*model_.layers()[layer_].attention, plan_, kv_, layer_, residual_,
                       buffers_.View(StepBuffers::kQuery, rows_));
  stage_ = Stage::kAttend;
}

// Where the next slice ends. A row attends to the records up to its own, so the time that a slice
// takes goes with the sum of its positions; one row at least, or a long sequence would never pass.
int Step::AttendEnd() {
  const int64_t limit =
      backend_.attends_slices() ? attend_pairs_max_ : std::numeric_limits<int64_t>::max();
  int end = attended_rows_;
  int64_t pairs = 0;
  for (; end < plan_.rows(); ++end) {
    const int64_t of_row = plan_.positions[end] + 1;
    if (end > attended_rows_ && pairs + of_row > limit) break;
    pairs += of_row;
  }
  attended_pairs_ += pairs;
  return end;
}

void Step::RunAttend() {
  const int begin = attended_rows_, end = AttendEnd();
  const Tensor query = buffers_.View(StepBuffers::kQuery, rows_);
  const Tensor output = buffers_.View(StepBuffers::kAttended, rows_);
  const kernels::Attention& attention = *model_.layers()[layer_].attention;
  // One slice is the plan itself: a copy of a small step's plan costs more than its attention.
  if (end - begin == plan_.rows()) {
    backend_.Attend(attention, plan_, kv_, layer_, query, output);
  } else {
    backend_.Attend(attention, plan_.Slice(begin, end), kv_, layer_, query.Slice(begin, end),
                    output.Slice(begin, end));
  }
  // Between slices the records of all rows are written already (AttentionIn), so slices may end
  // anywhere, also within a sequence.
  attended_rows_ = end;
  if (end < plan_.rows()) return;
  attended_rows_ = 0;
  stage_ = Stage::kAttentionOut;
}

void Step::RunAttentionOut() {
  const Layer& layer = model_.layers()[layer_];
  backend_.AttentionOut(*layer.attention, buffers_.View(StepBuffers::kAttended, rows_), residual_);
  // The MLP's norm ends this stage, for gate, experts and shared expert all read its rows.
  backend_.Norm(layer.mlp_norm.tensor, static_cast<float>(model_.config().rms_norm_eps), residual_,
                chosen_.rows);
  if (layer.dense != nullptr) {
    RunDense();
  } else {
    stage_ = Stage::kBegin;
  }
}

// A layer without experts: the same sum as with them, of the one MLP.
void Step::RunDense() {
  const Tensor out = buffers_.View(StepBuffers::kMlpOut, rows_);
  backend_.ApplyMlp(*model_.layers()[layer_].dense, chosen_.rows, out);
  backend_.Combine(out, {}, {}, residual_);
  EnterNextLayer();
}

void Step::BeginExchange() {
  backend_.ChooseExperts(*model_.layers()[layer_].gate, chosen_);
  // The host reads experts and faults below; operations may run later than they are called.
  backend_.Wait();
  for (int row = 0; row < plan_.rows(); ++row) faults_[row] |= chosen_.faults.As<uint8_t>()[row];
  // Padding rows (StepRows) stay here: they have no tokens, and no rank computes them.
  ticket_ = exchange_.Begin({.layer = layer_,
                             .rows = chosen_.rows.Slice(0, plan_.rows()),
                             .experts = chosen_.experts.Slice(0, plan_.rows()),
                             .out = buffers_.View(StepBuffers::kExpertRows, plan_.rows()),
                             .decode = plan_.decodes()});
  stage_ = Stage::kShared;
}

// While the routed rows travel: this stage hides the exchange's latency.
void Step::RunShared() {
  const kernels::Mlp* shared = model_.layers()[layer_].shared.get();
  shared_ = {};
  if (shared != nullptr) {
    shared_ = buffers_.View(StepBuffers::kMlpOut, rows_);
    backend_.ApplyMlp(*shared, chosen_.rows, shared_);
  }
  stage_ = Stage::kFinish;
}

absl::Status Step::FinishExchange() {
  RETURN_IF_ERROR(exchange_.Finish(ticket_, buffers_.View(StepBuffers::kExpertRows, plan_.rows())));
  // Experts are summed here in order of their ids, whichever rank answered first: the bits do not
  // depend on where experts live.
  backend_.Combine(shared_, buffers_.View(StepBuffers::kExpertRows, rows_), chosen_.weights,
                   residual_);
  EnterNextLayer();
  return absl::OkStatus();
}

void Step::EnterNextLayer() {
  ++layer_;
  stage_ = layer_ < model_.config().layer_count ? Stage::kAttentionIn : Stage::kHead;
}

void Step::RunHead() {
  const auto count = static_cast<int>(plan_.logit_rows.size());
  stage_ = Stage::kDone;
  // A chunk inside a prompt leaves records alone.
  if (count == 0) return;
  backend_.Head(model_.final_norm(), static_cast<float>(model_.config().rms_norm_eps),
                model_.head(), plan_, residual_, buffers_.View(StepBuffers::kLogits, count));
  backend_.Wait();
  // An infinity is no NaN, so no operation before this one has reported it.
  for (int i = 0; i < count; ++i) {
    if (!AllFinite(logits(i))) faults_[plan_.logit_rows[i]] = 1;
  }
}

// For people: stages that only the code tells apart share a name.
const char* Step::stage_name() const {
  switch (stage_) {
    case Stage::kStart:
      return "start";
    case Stage::kAttentionIn:
    case Stage::kAttend:
    case Stage::kAttentionOut:
      return "attention";
    case Stage::kBegin:
      return "dispatch";
    case Stage::kShared:
      return "shared expert";
    case Stage::kFinish:
      return "combine";
    case Stage::kHead:
      return "head";
    case Stage::kDone:
      break;
  }
  return "done";
}

std::span<float> Step::logits(int index) const {
  CHECK(stage_ == Stage::kDone) << "logits of a step that runs";
  CHECK(index >= 0 && index < static_cast<int>(plan_.logit_rows.size())) << index;
  const Tensor logits = buffers_.View(StepBuffers::kLogits, plan_.logit_rows.size());
  return {logits.Row<float>(index), static_cast<size_t>(logits.cols)};
}

}  // namespace epic::model
