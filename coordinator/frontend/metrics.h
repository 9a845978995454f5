// FrontendMetrics: counts what happens to requests at the door, on the page that /metrics gives.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace epic::coordinator {

class MetricsPage;

// Thread-safe.
class FrontendMetrics {
 public:
  // Registers its families with `page`, which outlives this. One for each page.
  explicit FrontendMetrics(MetricsPage& page);
  ~FrontendMetrics();
  FrontendMetrics(const FrontendMetrics&) = delete;
  FrontendMetrics& operator=(const FrontendMetrics&) = delete;

  // Events of requests.
  void OnAccepted(int prompt_tokens, int choices, int max_tokens);
  void OnRefused(absl::StatusCode code);
  void OnFirstToken(absl::Duration since_arrival);
  void OnTokens(int count);
  void OnNextToken(absl::Duration since_last);
  // `reason`: stop, length, abort or error.
  void OnFinished(const std::string& reason, absl::Duration since_arrival, int completion_tokens);

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace epic::coordinator
