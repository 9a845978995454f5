// FrontendMetrics: what /metrics tells, in Prometheus' text format. Every number that users of vLLM
// know is there under its name (vllm:num_requests_running …) beside ours (epic_…).
//
//   FrontendMetrics metrics(inference);
//   metrics.AddCounter("epic_replay_mismatch_total", "…", [&] { return core.mismatches(); });
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "coordinator/inference.h"

namespace epic::coordinator {

// Thread-safe, but AddCounter and AddGauge come before the first Text().
class FrontendMetrics {
 public:
  // `inference` outlives this; its status() is read at each Text().
  explicit FrontendMetrics(const Inference& inference);
  ~FrontendMetrics();
  FrontendMetrics(const FrontendMetrics&) = delete;
  FrontendMetrics& operator=(const FrontendMetrics&) = delete;

  // Numbers of other parts, read at each Text(). A counter's never falls.
  void AddCounter(const std::string& name, const std::string& help, std::function<double()> read);
  void AddGauge(const std::string& name, const std::string& help, std::function<double()> read);

  // Events of requests.
  void OnAccepted(int prompt_tokens, int choices, int max_tokens);
  void OnRefused(absl::StatusCode code);
  void OnFirstToken(absl::Duration since_arrival);
  void OnTokens(int count);
  void OnNextToken(absl::Duration since_last);
  // `reason`: stop, length, abort or error.
  void OnFinished(const std::string& reason, absl::Duration since_arrival, int completion_tokens);

  // The whole page.
  std::string Text();

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace epic::coordinator
