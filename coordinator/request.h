// A request as the coordinator's parts see it: made and fully checked by a frontend, in tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/weights_id.h"
#include "proto/epic/v1/worker.pb.h"
#include "text/answer_parser.h"

namespace epic::coordinator {

using v1::FinishReason;

// Ranges are checked by coordinator/frontend; a frontend fills model defaults in.
struct Sampling {
  float temperature = 1;         // 0: greedy
  float top_p = 1;               // (0, 1]
  int top_k = 0;                 // 0: off
  float min_p = 0;               // [0, 1]
  std::optional<uint64_t> seed;  // drawn at admission if absent
  float repetition_penalty = 1;  // > 0
  float presence_penalty = 0;    // [-2, 2]
  float frequency_penalty = 0;   // [-2, 2]
};

struct Request {
  std::string id;  // as the client sees it; unguessable unless the client chose it
  std::vector<int32_t> prompt;
  Sampling sampling;
  int max_tokens = 0;  // > 0; prompt.size() + max_tokens fits the context
  int min_tokens = 0;
  std::vector<int32_t> stop_token_ids;  // eos included unless ignored
  text::AnswerFormat answer;            // how tokens become text; a stop string ends a choice
  int choices = 1;
  int logprobs = -1;  // alternatives for each token; -1: none
  bool prompt_logprobs = false;
  int priority = 0;
  cluster::WeightsId weights = cluster::WeightsId::kFirst;
  absl::Time deadline = absl::InfiniteFuture();
};

struct JournalToken {
  int32_t token = 0;
  float logprob = 0;
  std::vector<v1::TokenLogprob> top;  // the likeliest tokens, most likely first
};

}  // namespace epic::coordinator
