// A request as the coordinator's parts see it: made and fully checked by a frontend, in tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/weights_id.h"
#include "proto/epic/v1/worker.pb.h"
#include "text/answer_parser.h"

namespace epic::coordinator {

using v1::FinishReason;

// Draws from the model's distribution as it is. Settings that 0 turns off stay unset.
inline v1::Sampling NeutralSampling() {
  v1::Sampling sampling;
  sampling.set_temperature(1);
  sampling.set_top_p(1);
  sampling.set_repetition_penalty(1);
  return sampling;
}

struct Request {
  std::string id;  // as the client sees it; unguessable unless the client chose it
  std::vector<int32_t> prompt;
  v1::Sampling sampling = NeutralSampling();  // a seed is drawn at admission if it has none
  int max_tokens = 0;  // > 0; prompt.size() + max_tokens fits the context
  int min_tokens = 0;
  std::vector<int32_t> stop_token_ids;  // eos included unless ignored
  text::AnswerFormat answer;            // how tokens become text; a stop string ends a choice
  int choices = 1;
  int logprobs = -1;  // alternatives for each token; -1: none
  bool prompt_logprobs = false;
  int priority = 0;  // lower values go first, as in vLLM
  cluster::WeightsId weights = cluster::WeightsId::kFirst;
  absl::Time deadline = absl::InfiniteFuture();
};

struct JournalToken {
  int32_t token = 0;
  float logprob = 0;
  std::vector<v1::TokenLogprob> top;  // the likeliest tokens, most likely first
};

}  // namespace epic::coordinator
