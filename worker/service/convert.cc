#include "worker/service/convert.h"

namespace epic::worker {
namespace {

model::SamplingParams SamplingFrom(const v1::StartSequence& start) {
  const v1::Sampling& spec = start.sampling();
  return {.temperature = spec.temperature(),
          .top_p = spec.top_p(),
          .top_k = spec.top_k(),
          .min_p = spec.min_p(),
          .seed = spec.seed(),
          .choice = start.choice(),
          .repetition_penalty = spec.repetition_penalty(),
          .presence_penalty = spec.presence_penalty(),
          .frequency_penalty = spec.frequency_penalty()};
}

}  // namespace

SequenceRequest RequestFrom(const v1::StartSequence& start) {
  return {.prompt = {start.prompt().begin(), start.prompt().end()},
          .forced = {start.forced().begin(), start.forced().end()},
          .sampling = SamplingFrom(start),
          .max_tokens = start.max_tokens(),
          .min_tokens = start.min_tokens(),
          .stop_token_ids = {start.stop_token_ids().begin(), start.stop_token_ids().end()},
          .logprobs = start.logprobs(),
          .prompt_logprobs = start.prompt_logprobs(),
          .priority = start.priority()};
}

v1::SequenceToken MessageFrom(const NewToken& token) {
  v1::SequenceToken message;
  message.set_position(token.position);
  message.set_token(token.token);
  message.set_logprob(token.logprob);
  message.mutable_top()->Assign(token.top.begin(), token.top.end());
  message.set_finish_reason(token.finish);
  return message;
}

}  // namespace epic::worker
