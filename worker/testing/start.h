// Sequences for tests of what stands around the engine.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/epic/v1/worker.pb.h"

namespace epic::worker {

// The first attempt, which draws from the model's distribution as it is; its seed is its number.
inline v1::StartSequence NewStart(uint64_t sequence, const std::vector<int32_t>& prompt,
                                  int max_tokens) {
  v1::StartSequence start;
  start.set_sequence(sequence);
  start.set_attempt(1);
  start.mutable_prompt()->Assign(prompt.begin(), prompt.end());
  start.set_max_tokens(max_tokens);
  start.set_logprobs(-1);
  v1::Sampling& sampling = *start.mutable_sampling();
  sampling.set_temperature(1);
  sampling.set_top_p(1);
  sampling.set_repetition_penalty(1);
  sampling.set_seed(sequence);
  return start;
}

}  // namespace epic::worker
