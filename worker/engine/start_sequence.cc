#include "worker/engine/start_sequence.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "cluster/weights_id.h"

namespace epic::worker {
namespace {

// A field that nobody set is 0 here; the coordinator completes what has another default.
model::SamplingParams SamplingFrom(const v1::StartSequence& start) {
  const v1::Sampling& sampling = start.sampling();
  return {.temperature = sampling.temperature(),
          .top_p = sampling.top_p(),
          .top_k = sampling.top_k(),
          .min_p = sampling.min_p(),
          .seed = sampling.seed(),
          .choice = start.choice(),
          .repetition_penalty = sampling.repetition_penalty(),
          .presence_penalty = sampling.presence_penalty(),
          .frequency_penalty = sampling.frequency_penalty()};
}

absl::Status CheckTokens(const char* field, const google::protobuf::RepeatedField<int32_t>& tokens,
                         int vocab_size) {
  for (int i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        field, "[", i, "] is token ", tokens[i], "; the vocabulary is 0 .. ", vocab_size - 1));
  }
  return absl::OkStatus();
}

// The coordinator has checked what clients sent. The worker checks again, for its own limits, and
// because one bad sequence must never harm the others of its rank.
absl::Status CheckLengths(const v1::StartSequence& start, const SequenceLimits& limits) {
  const auto invalid = [](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  };
  if (start.attempt() == 0) return invalid("attempt is 0; attempts count from 1");
  if (start.prompt().empty()) return invalid("prompt is empty; at least 1 token is needed");
  const int64_t length = int64_t{start.prompt_size()} + start.forced_size();
  // Of max_model_len tokens the last is drawn and never computed.
  if (length >= limits.max_model_len) {
    return absl::OutOfRangeError(absl::StrCat(
        "prompt and forced tokens are ", length, " tokens; with max_model_len ",
        limits.max_model_len, " at most ", limits.max_model_len - 1, " leave one to generate"));
  }
  if (start.max_tokens() <= start.forced_size()) {
    return invalid("max_tokens is ", start.max_tokens(), "; it must exceed the ",
                   start.forced_size(), " forced tokens");
  }
  if (start.min_tokens() < 0 || start.min_tokens() > start.max_tokens()) {
    return invalid("min_tokens is ", start.min_tokens(), "; it must be in 0 .. max_tokens ",
                   start.max_tokens());
  }
  if (start.logprobs() < -1 || start.logprobs() > limits.vocab_size) {
    return invalid("logprobs is ", start.logprobs(), "; it must be in -1 .. vocabulary ",
                   limits.vocab_size);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Sequence> NewSequence(v1::StartSequence start, const SequenceLimits& limits) {
  CHECK_GT(limits.max_model_len, 1);
  CHECK_GT(limits.vocab_size, 0);
  RETURN_IF_ERROR(CheckLengths(start, limits));
  RETURN_IF_ERROR(cluster::WeightsIdFrom(start.weights_id()).status());
  RETURN_IF_ERROR(CheckTokens("prompt", start.prompt(), limits.vocab_size));
  RETURN_IF_ERROR(CheckTokens("forced", start.forced(), limits.vocab_size));
  RETURN_IF_ERROR(CheckTokens("stop_token_ids", start.stop_token_ids(), limits.vocab_size));
  Sequence sequence{.name = {start.sequence(), start.attempt()},
                    .prompt_length = start.prompt_size(),
                    // In 64 bits: both may be as large as an int.
                    .length_max = static_cast<int>(std::min<int64_t>(
                        int64_t{start.prompt_size()} + start.max_tokens(), limits.max_model_len)),
                    // The last prompt row's logits are of the first generated token.
                    .scored_rows = start.prompt_logprobs() ? start.prompt_size() - 1 : 0,
                    .priority = start.priority(),
                    .sampling = SamplingFrom(start),
                    .tokens = {start.prompt().begin(), start.prompt().end()}};
  RETURN_IF_ERROR(model::CheckSampling(sequence.sampling));
  sequence.tokens.insert(sequence.tokens.end(), start.forced().begin(), start.forced().end());
  // A long prompt is kept once; clear() would keep its memory.
  v1::StartSequence().mutable_prompt()->Swap(start.mutable_prompt());
  v1::StartSequence().mutable_forced()->Swap(start.mutable_forced());
  sequence.request = std::move(start);
  return sequence;
}

}  // namespace epic::worker
