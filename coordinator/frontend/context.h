// FrontendContext: all that the frontends (HTTP, gRPC) are given. main.cc fills it once, before
// they start; it is only read afterwards, by any thread, and outlives them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/env.h"
#include "coordinator/frontend/browser_rules.h"
#include "coordinator/inference.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace epic::coordinator {

class FrontendMetrics;
class MetricsPage;

// What a request gets that does not say otherwise: the model's generation_config.json.
struct GenerationDefaults {
  v1::Sampling sampling;
  std::vector<int32_t> eos_ids;  // end a request unless it sets ignore_eos
};

// What one request may ask for. Beyond a limit: InvalidArgument naming field, value and limit.
struct FrontendLimits {
  int choices_max = 128;      // n, times the prompts of one HTTP request
  int logprobs_max = 20;      // alternatives for each token
  int stop_count_max = 16;    // stop strings, and stop token ids
  int stop_bytes_max = 1024;  // of one stop string
  int message_count_max = 4096;
  int completion_tokens_default = 16;  // /v1/completions without max_tokens, as OpenAI has it
  absl::Duration timeout = absl::Minutes(30);
  absl::Duration timeout_max = absl::Hours(24);
};

struct FrontendContext {
  Inference& inference;
  Clock& clock;
  Random& random;
  FrontendMetrics& metrics;
  const MetricsPage& metrics_page;  // what /metrics gives
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const text::ChatTemplate> chat_template;  // null: the model has none
  GenerationDefaults defaults;
  FrontendLimits limits;
  std::vector<std::string> api_keys;  // empty: everybody may ask
  std::string version;                // of the program, for /version
  BrowserRules browser;
};

}  // namespace epic::coordinator
