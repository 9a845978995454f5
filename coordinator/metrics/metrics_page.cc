#include "coordinator/metrics/metrics_page.h"

#include <prometheus/text_serializer.h>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/metrics/rank_columns.h"

namespace epic::coordinator {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::map<std::string, std::string>;

// Ours and vLLM's, where both mean the same.
const std::map<std::string, std::string>& Aliases() {
  // The table is never destroyed: a page may still be asked for while the program ends.
  static const auto* const aliases = new std::map<std::string, std::string>{
      {"epic_requests_running", "vllm:num_requests_running"},
      {"epic_requests_waiting", "vllm:num_requests_waiting"},
      {"epic_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"},
      {"epic_preemptions_total", "vllm:num_preemptions_total"},
      {"epic_prompt_tokens_total", "vllm:prompt_tokens_total"},
      {"epic_generation_tokens_total", "vllm:generation_tokens_total"},
      {"epic_requests_finished_total", "vllm:request_success_total"},
      {"epic_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"},
      {"epic_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"},
      {"epic_request_latency_seconds", "vllm:e2e_request_latency_seconds"},
      {"epic_request_prompt_tokens", "vllm:request_prompt_tokens"},
      {"epic_request_generation_tokens", "vllm:request_generation_tokens"},
      {"epic_request_max_tokens", "vllm:request_params_max_tokens"},
      {"epic_request_choices", "vllm:request_params_n"},
  };
  return *aliases;
}

// What the whole cluster is told of; the ranks' own numbers are in rank_columns.cc.
struct ClusterColumn {
  const char* metric;
  const char* help;
  MetricType type;
  double (*read)(const ClusterStatus& status);
};

template <class Read>
double SumOverRanks(const ClusterStatus& status, Read read) {
  double sum = 0;
  for (const RankStatus& rank : status.ranks) sum += static_cast<double>(read(rank));
  return sum;
}

double KvCacheUsage(const ClusterStatus& status) {
  // All pages count alike, whichever rank has them: a mean of the ranks' ratios would hide a full
  // large rank behind an empty small one.
  const double pages = SumOverRanks(status, [](const RankStatus& r) { return r.kv_page_count; });
  const double used = SumOverRanks(status, [](const RankStatus& r) { return r.kv_pages_used; });
  // `pages` is 0 until a rank has told its own.
  return pages > 0 ? used / pages : 0;
}

constexpr ClusterColumn kClusterColumns[] = {
    {"epic_ready", "1: requests are served", MetricType::Gauge,
     [](const ClusterStatus& s) { return s.ready ? 1.0 : 0.0; }},
    // These two count choices: a request with n choices computes n sequences.
    {"epic_requests_running", "Requests in a batch", MetricType::Gauge,
     [](const ClusterStatus& s) -> double { return s.requests_running; }},
    {"epic_requests_waiting", "Requests that wait for a place in a batch", MetricType::Gauge,
     [](const ClusterStatus& s) -> double { return s.requests_waiting; }},
    // vLLM's "perc" is a ratio from 0 to 1 as well, so the alias needs no factor.
    {"epic_kv_cache_usage_ratio", "Part of the KV pages in use", MetricType::Gauge, &KvCacheUsage},
    {"epic_preemptions_total", "Sequences that gave their KV pages back to run again",
     MetricType::Counter,
     [](const ClusterStatus& s) {
       return SumOverRanks(s, [](const RankStatus& r) { return r.preemptions; });
     }},
    {"epic_ranks", "Workers in the world", MetricType::Gauge,
     [](const ClusterStatus& s) { return static_cast<double>(s.ranks.size()); }},
    {"epic_map_number", "Version of the map of experts within this coordinator's life",
     MetricType::Gauge, [](const ClusterStatus& s) { return static_cast<double>(s.map_number); }},
    {"epic_experts", "Experts of all layers", MetricType::Gauge,
     [](const ClusterStatus& s) { return static_cast<double>(s.experts); }},
    {"epic_experts_unhosted", "Experts that no rank holds", MetricType::Gauge,
     [](const ClusterStatus& s) { return static_cast<double>(s.experts_unhosted); }},
    {"epic_experts_unreplicated", "Experts that one rank alone holds", MetricType::Gauge,
     [](const ClusterStatus& s) { return static_cast<double>(s.experts_unreplicated); }},
    {"epic_frozen", "1: no rank is revoked on suspicion, no expert moved for evenness",
     MetricType::Gauge, [](const ClusterStatus& s) { return s.frozen ? 1.0 : 0.0; }},
};

MetricFamily NewFamily(const std::string& name, const std::string& help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

void Add(const Labels& labels, double value, MetricFamily* family) {
  ClientMetric metric;
  for (const auto& [name, text] : labels) metric.label.push_back({name, text});
  (family->type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  family->metric.push_back(std::move(metric));
}

void AddClusterFamilies(const ClusterStatus& status, const Labels& labels,
                        std::vector<MetricFamily>* families) {
  for (const ClusterColumn& column : kClusterColumns) {
    families->push_back(NewFamily(column.metric, column.help, column.type));
    Add(labels, column.read(status), &families->back());
  }
}

// A family per column, with one line of each rank: the format wants a family's lines together.
void AddRankFamilies(const ClusterStatus& status, std::vector<MetricFamily>* families) {
  for (const RankColumn& column : RankColumns()) {
    // A column without a metric is for /ready and for operators.
    if (column.metric == nullptr) continue;
    families->push_back(
        NewFamily(column.metric, column.help,
                  column.kind == ColumnKind::kCounter ? MetricType::Counter : MetricType::Gauge));
    for (const RankStatus& rank : status.ranks) {
      Add({{"rank", absl::StrCat(rank.rank)}}, column.read(rank), &families->back());
    }
  }
}

std::string FirstName(const Inference& inference) {
  const std::vector<std::string> names = inference.model().names;
  return names.empty() ? "" : names.front();
}

}  // namespace

MetricsPage::MetricsPage(const Inference& inference)
    // The label is read once, because served names never change in a life of the coordinator.
    : inference_(inference), labels_({{"model_name", FirstName(inference)}}) {}

void MetricsPage::AddCounter(const std::string& name, const std::string& help,
                             std::function<double()> read) {
  // A function that is missing would be called at the first scrape only, far from the mistake.
  CHECK(read != nullptr) << name;
  externals_.push_back({name, help, MetricType::Counter, std::move(read)});
}

void MetricsPage::AddGauge(const std::string& name, const std::string& help,
                           std::function<double()> read) {
  CHECK(read != nullptr) << name;
  externals_.push_back({name, help, MetricType::Gauge, std::move(read)});
}

std::string MetricsPage::Text() const {
  std::vector<MetricFamily> all;
  // One status serves the whole page: its numbers are of one moment, and the core's lock is taken
  // once.
  const ClusterStatus status = inference_.status();
  AddClusterFamilies(status, labels_, &all);
  AddRankFamilies(status, &all);
  for (const External& external : externals_) {
    all.push_back(NewFamily(external.name, external.help, external.type));
    Add({}, external.read(), &all.back());
  }
  for (MetricFamily& family : registry_.Collect()) all.push_back(std::move(family));
  std::vector<MetricFamily> page;
  for (const MetricFamily& family : all) {
    page.push_back(family);
    const auto alias = Aliases().find(family.name);
    if (alias == Aliases().end()) continue;
    page.push_back(family);
    // The copy under vLLM's name lets dashboards that were made for vLLM work as they are.
    page.back().name = alias->second;
  }
  return prometheus::TextSerializer().Serialize(page);
}

}  // namespace epic::coordinator
