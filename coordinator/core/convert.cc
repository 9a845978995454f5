#include "coordinator/core/convert.h"

#include "absl/strings/str_format.h"

namespace epic::coordinator {

JournalToken TokenFrom(const v1::SequenceToken& message) {
  return {.token = message.token(),
          .logprob = message.logprob(),
          .top = {message.top().begin(), message.top().end()}};
}

v1::StartSequence StartFrom(const Request& request, int choice) {
  // Stop strings stay here: the core alone looks for them, and a rank needs no text.
  v1::StartSequence start;
  start.mutable_prompt()->Add(request.prompt.begin(), request.prompt.end());
  *start.mutable_sampling() = request.sampling;
  start.set_choice(choice);
  start.set_max_tokens(request.max_tokens);
  start.set_min_tokens(request.min_tokens);
  start.mutable_stop_token_ids()->Add(request.stop_token_ids.begin(), request.stop_token_ids.end());
  start.set_logprobs(request.logprobs);
  start.set_priority(request.priority);
  start.set_weights_id(NumberOf(request.weights));
  return start;
}

std::string Fingerprint(const std::string& profile, const std::string& checkpoint) {
  // std::hash may differ from build to build, and clients compare fingerprints over restarts. The
  // newline keeps the two texts apart.
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : profile + '\n' + checkpoint) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211u;
  }
  return absl::StrFormat("epic-%016x", hash);
}

}  // namespace epic::coordinator
