#include "cli/bench_run.h"

#include <algorithm>
#include <cstring>

#include "absl/time/time.h"
#include "base/check.h"

namespace epic::cli {
namespace {

// The time of a step depends on how many records there are and hardly on what is in them, so only
// this many are computed. A whole context of a large model would take minutes before each
// measurement.
constexpr int kComputedContext = 512;  // a multiple of a page

// What every step reads, whatever its rows are. The embedding is not part of it: a step copies a
// row of the table for each token.
int64_t DenseBytes(const model::Model& model) {
  int64_t bytes = model.head().packed_bytes;
  for (const model::Layer& layer : model.layers()) {
    bytes += layer.attention->packed_bytes;
    if (layer.dense != nullptr) bytes += layer.dense->packed_bytes;
    if (layer.gate != nullptr) bytes += layer.gate->packed_bytes;
    if (layer.shared != nullptr) bytes += layer.shared->packed_bytes;
  }
  return bytes;
}

// SetContext computes its records as one prompt, so the buffers must have room for that one too.
int RowsMax(const BenchLimits& limits) {
  return std::max(
      {limits.prompt_max, limits.sequences, std::min(limits.context_max, kComputedContext)});
}

}  // namespace

model::ExpertExchange::Ticket BenchRun::CountingExchange::Begin(
    const model::ExpertDispatch& dispatch) {
  const auto& experts = model_.layers()[dispatch.layer].experts;
  // An expert counts once for all rows of a step: its weights are read once and serve all of them.
  chosen_.assign(experts.size(), false);
  const auto* ids = dispatch.experts.As<int32_t>();
  for (int64_t i = 0; i < dispatch.experts.rows * dispatch.experts.cols; ++i) {
    if (!chosen_[ids[i]]) bytes_ += experts[ids[i]]->packed_bytes;
    chosen_[ids[i]] = true;
  }
  return local_.Begin(dispatch);
}

int BenchRun::PagesOf(const BenchLimits& limits, int sequence) {
  const int more =
      sequence == 0 ? std::max(limits.prompt_max, limits.decode_max) : limits.decode_max;
  return (limits.context_max + more + kernels::kPageTokens - 1) / kernels::kPageTokens;
}

int64_t BenchRun::WeightBytes(const model::Model& model) {
  const kernels::SourceMatrix& embedding = model.embedding();
  int64_t bytes =
      DenseBytes(model) + embedding.rows * embedding.cols * kernels::DTypeBytes(embedding.dtype);
  for (const model::Layer& layer : model.layers()) {
    for (const auto& expert : layer.experts) bytes += expert->packed_bytes;
  }
  return bytes;
}

int64_t BenchRun::Bytes(const model::Model& model, const kernels::Backend& backend,
                        const BenchLimits& limits) {
  int64_t pages = 0;
  for (int s = 0; s < limits.sequences; ++s) pages += PagesOf(limits, s);
  return pages * model.kv_layout().page_bytes() * model.config().layer_count +
         model::StepBuffers::Bytes(model.config(), backend, RowsMax(limits), limits.sequences);
}

BenchRun::BenchRun(const model::Model& model, kernels::Backend& backend, Clock& clock,
                   const BenchLimits& limits)
    : model_(model),
      backend_(backend),
      clock_(clock),
      limits_(limits),
      dense_bytes_(DenseBytes(model)),
      first_page_(1, 0),
      lengths_(limits.sequences, 0),
      exchange_(model, backend),
      buffers_(model.config(), backend, RowsMax(limits), limits.sequences) {
  for (int s = 0; s < limits.sequences; ++s) {
    first_page_.push_back(first_page_.back() + PagesOf(limits, s));
  }
  for (int layer = 0; layer < model.config().layer_count; ++layer) {
    // KvView wants one slab for each layer; a page has the same number in all of them.
    slabs_.push_back(backend.Allocate(first_page_.back() * model.kv_layout().page_bytes(),
                                      kernels::MemoryUse::kTraffic));
    slab_pointers_.push_back(slabs_.back()->data());
  }
}

void BenchRun::SetContext(int context) {
  CHECK_LE(context, limits_.context_max);
  std::ranges::fill(lengths_, 0);
  const int computed = std::min(context, kComputedContext);
  if (computed > 0) {
    Prefill(computed);
    CopyPages((computed + kernels::kPageTokens - 1) / kernels::kPageTokens);
  }
  std::ranges::fill(lengths_, context);
}

// The computed records lie in the first pages of the first sequence, and every slab is indexed by
// page alone, so `from` is a page of that sequence. A source is never overwritten. Pages beyond the
// context are written too: their first touch must not fall into a timed step.
void BenchRun::CopyPages(int from_count) {
  const int64_t bytes = model_.kv_layout().page_bytes();
  for (std::byte* slab : slab_pointers_) {
    for (int s = 0; s < limits_.sequences; ++s) {
      for (int page = first_page_[s]; page < first_page_[s + 1]; ++page) {
        const int from = (page - first_page_[s]) % from_count;
        if (page != from) std::memcpy(slab + page * bytes, slab + from * bytes, bytes);
      }
    }
  }
}

kernels::StepPlan BenchRun::Plan(int sequences, int rows, bool prompt) {
  kernels::StepPlan plan;
  for (int s = 0; s < sequences; ++s) {
    plan.sequences.push_back({.first_row = plan.rows(),
                              .row_count = rows,
                              .first_position = lengths_[s],
                              .first_page = static_cast<int32_t>(plan.pages.size()),
                              .prompt_length = prompt ? lengths_[s] + rows : 0});
    for (int page = first_page_[s]; page < first_page_[s + 1]; ++page) plan.pages.push_back(page);
    for (int row = 0; row < rows; ++row) {
      // A linear congruential generator from a fixed start, so that each run of the benchmark sees
      // the same tokens. Its low bits repeat after a few numbers and are shifted out.
      random_ = random_ * 1664525u + 1013904223u;  // tokens differ, so do the experts they choose
      plan.token_ids.push_back(static_cast<int32_t>((random_ >> 8) % model_.config().vocab_size));
      plan.positions.push_back(lengths_[s]++);
      plan.row_sequence.push_back(s);
      plan.roles.push_back(prompt ? kernels::RowRole::kPrompt : kernels::RowRole::kDecode);
    }
    plan.logit_rows.push_back(plan.rows() - 1);
  }
  return plan;
}

TimedStep BenchRun::Advance(int sequences, int rows, bool prompt) {
  const kernels::StepPlan plan = Plan(sequences, rows, prompt);
  const kernels::KvView kv{model_.kv_layout(), slab_pointers_, first_page_.back()};
  const absl::Time start = clock_.Now();
  model::Step step(model_, backend_, exchange_, kv, plan, buffers_);
  // All experts are here, so no exchange waits for others and the step never has to give way.
  while (true) {
    const auto progress = step.Advance();
    CHECK_OK(progress.status());
    if (*progress == model::Step::Progress::kDone) break;
  }
  TimedStep timed{.seconds = absl::ToDoubleSeconds(clock_.Now() - start)};
  // A row with a fault holds no numbers that a server would use, so the time of its step says
  // nothing.
  for (const uint8_t fault : step.faults()) CHECK_EQ(fault, 0);
  int64_t records = 0;
  for (int s = 0; s < sequences; ++s) records += lengths_[s];
  timed.floor_bytes = dense_bytes_ + exchange_.TakeBytes() +
                      records * model_.kv_layout().record_bytes() * model_.config().layer_count;
  return timed;
}

}  // namespace epic::cli
