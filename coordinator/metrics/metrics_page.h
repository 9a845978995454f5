// MetricsPage: the page that /metrics gives, in Prometheus' text format. It holds the state of the
// cluster and of each rank (rank_columns.h), the numbers that other parts add, and what they
// register. Every number that users of vLLM know is there under its name (vllm:num_requests_running
// …) beside ours (epic_…).
//
//   MetricsPage page(inference);
//   page.AddCounter("epic_replay_mismatch_total", "…", [&] { return core.mismatches(); });
//   FrontendMetrics metrics(page);
#pragma once

#include <prometheus/registry.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "coordinator/inference.h"

namespace epic::coordinator {

// Thread-safe, but AddCounter, AddGauge and registration come before the first Text().
class MetricsPage {
 public:
  // `inference` outlives this; its status() is read at each Text().
  explicit MetricsPage(const Inference& inference);
  MetricsPage(const MetricsPage&) = delete;
  MetricsPage& operator=(const MetricsPage&) = delete;

  // Numbers of other parts, read at each Text(). A counter's never falls.
  void AddCounter(const std::string& name, const std::string& help, std::function<double()> read);
  void AddGauge(const std::string& name, const std::string& help, std::function<double()> read);

  // For parts that count by themselves, and the labels of what they count: {"model_name": …}.
  prometheus::Registry& registry() { return registry_; }
  const std::map<std::string, std::string>& labels() const { return labels_; }

  // The whole page.
  std::string Text() const;

 private:
  struct External {
    std::string name, help;
    prometheus::MetricType type;
    std::function<double()> read;
  };

  const Inference& inference_;
  const std::map<std::string, std::string> labels_;
  std::vector<External> externals_;
  prometheus::Registry registry_;
};

}  // namespace epic::coordinator
