// models/tiny-r1 on any backend, against what float32 transformers answers greedily.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/golden/golden_backends.h"

namespace epic::golden {

// How many of `prompts` of tiny_r1_answers.json are answered as there, as far as the first
// `tokens_max` tokens; −1: model or file is missing.
inline int EqualAnswers(kernels::Backend& backend, int prompts,
                        int tokens_max = std::numeric_limits<int>::max()) {
  constexpr int32_t kEndOfSentence = 1008;
  std::ifstream file("tests/golden/data/tiny_r1_answers.json");
  const nlohmann::json answers = nlohmann::json::parse(file, nullptr, false);
  if (!answers.is_array() || static_cast<int>(answers.size()) < prompts) return -1;
  const auto model = Loaded("models/tiny-r1", backend);
  if (model == nullptr) return -1;
  int equal = 0;
  for (int i = 0; i < prompts; ++i) {
    const nlohmann::json& answer = answers[i * answers.size() / prompts];
    auto expected = answer["output_ids"].get<std::vector<int32_t>>();
    expected.resize(std::min<size_t>(expected.size(), tokens_max));
    const std::vector<int32_t> given =
        model->Greedy(answer["prompt_ids"].get<std::vector<int32_t>>(), kEndOfSentence,
                      static_cast<int>(expected.size()));
    if (given == expected) ++equal;
  }
  return equal;
}

}  // namespace epic::golden
