// The sampler: logits of one row → the sequence's next token. A pure function: the token at a
// position depends on the logits, the settings, seed, choice and position, nothing else.
//
// In order: penalties, temperature, min_p, top_k, top_p; then one number u of Philox4x32-10, keyed
// by (seed, choice, position), is inverted over the kept ids in ascending order, summed in FP32 in
// blocks of 128 ids. Temperature 0 takes the largest logit. Ties go to the lowest id.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace epic::model {

struct SamplingParams {
  float temperature = 1;  // 0: greedy
  float top_p = 1;        // keeps the most likely ids that together reach it
  int top_k = 0;          // keeps so many ids; 0: all
  float min_p = 0;        // keeps ids at least min_p times as likely as the likeliest
  uint64_t seed = 0;
  uint32_t choice = 0;           // of several answers to one request
  float repetition_penalty = 1;  // divides positive and multiplies negative logits of seen tokens
  float presence_penalty = 0;    // off the logit of each generated token, once
  float frequency_penalty = 0;   // off it for each time it was generated
  int token_limit = 0;           // ids from here on are never drawn; 0: no limit
};

// InvalidArgument naming field, value and limit.
absl::Status CheckSampling(const SamplingParams& params);

// The token that follows `prompt` and `generated`; its position is generated.size(). `logits`
// [vocab] hold no NaN and are overwritten; −∞ is an id that must not be drawn. Token ids are
// below vocab. `params` passed CheckSampling.
int32_t SampleToken(std::span<float> logits, const SamplingParams& params,
                    std::span<const int32_t> prompt, std::span<const int32_t> generated);

// ln Σ e^logit: the log-probability of id i is logits[i] − LogSumExp(logits).
float LogSumExp(std::span<const float> logits);

// In [0, 1), 53 bits.
double UniformNumber(uint64_t seed, uint32_t choice, uint64_t position);

}  // namespace epic::model
