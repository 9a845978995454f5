#include "coordinator/frontend/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>

#include "absl/strings/str_cat.h"

namespace epic::coordinator {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets kSeconds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                          0.5,   1,     2,     5,    10,   20,   60,  300};
const Buckets kTokens = {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144};

// Ours and vLLM's, where both mean the same.
const std::map<std::string, std::string>& Aliases() {
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

using Labels = std::vector<std::pair<std::string, std::string>>;

void Add(MetricFamily* family, const Labels& labels, double value) {
  ClientMetric metric;
  for (const auto& [name, text] : labels) metric.label.push_back({name, text});
  (family->type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  family->metric.push_back(std::move(metric));
}

MetricFamily NewFamily(const std::string& name, const std::string& help,
                       MetricType type = MetricType::Gauge) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

}  // namespace

struct FrontendMetrics::Families {
  struct External {
    std::string name, help;
    MetricType type;
    std::function<double()> read;
  };

  Families(const Inference& inference_in, const std::map<std::string, std::string>& labels)
      : inference(inference_in),
        prompt_tokens(Counter("epic_prompt_tokens_total", "Tokens of accepted prompts", labels)),
        generation_tokens(Counter("epic_generation_tokens_total", "Tokens generated", labels)),
        refused(prometheus::BuildCounter()
                    .Name("epic_requests_refused_total")
                    .Help("Requests refused at the door, by status code")
                    .Labels(labels)
                    .Register(registry)),
        finished(prometheus::BuildCounter()
                     .Name("epic_requests_finished_total")
                     .Help("Choices ended, by reason")
                     .Labels(labels)
                     .Register(registry)),
        first_token(Histogram("epic_time_to_first_token_seconds",
                              "From a request's arrival to its first token", kSeconds, labels)),
        next_token(Histogram("epic_inter_token_latency_seconds",
                             "From one token of a choice to the next", kSeconds, labels)),
        latency(Histogram("epic_request_latency_seconds", "From a request's arrival to its end",
                          kSeconds, labels)),
        request_prompt(
            Histogram("epic_request_prompt_tokens", "Tokens of a prompt", kTokens, labels)),
        request_generation(Histogram("epic_request_generation_tokens",
                                     "Tokens generated for a choice", kTokens, labels)),
        request_max_tokens(
            Histogram("epic_request_max_tokens", "max_tokens of a request", kTokens, labels)),
        request_choices(Histogram("epic_request_choices", "n of a request",
                                  {1, 2, 4, 8, 16, 32, 64, 128}, labels)) {
    // There from the start, so that rates work.
    for (const char* reason : {"stop", "length", "abort", "error"}) {
      finished.Add({{"finished_reason", reason}});
    }
  }

  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const std::map<std::string, std::string>& labels) {
    return prometheus::BuildCounter().Name(name).Help(help).Labels(labels).Register(registry).Add(
        {});
  }

  prometheus::Histogram& Histogram(const std::string& name, const std::string& help,
                                   const Buckets& buckets,
                                   const std::map<std::string, std::string>& labels) {
    return prometheus::BuildHistogram().Name(name).Help(help).Labels(labels).Register(registry).Add(
        {}, buckets);
  }

  std::vector<MetricFamily> StatusFamilies() const;
  std::vector<MetricFamily> RankFamilies(const ClusterStatus& status) const;
  std::vector<MetricFamily> ExchangeFamilies(const ClusterStatus& status) const;

  const Inference& inference;
  Labels model_label;
  std::vector<External> externals;
  prometheus::Registry registry;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Family<prometheus::Counter>& refused;
  prometheus::Family<prometheus::Counter>& finished;
  prometheus::Histogram& first_token;
  prometheus::Histogram& next_token;
  prometheus::Histogram& latency;
  prometheus::Histogram& request_prompt;
  prometheus::Histogram& request_generation;
  prometheus::Histogram& request_max_tokens;
  prometheus::Histogram& request_choices;
};

std::vector<MetricFamily> FrontendMetrics::Families::StatusFamilies() const {
  const ClusterStatus status = inference.status();
  double pages = 0, pages_used = 0, preemptions = 0;
  for (const RankStatus& rank : status.ranks) {
    pages += rank.kv_page_count;
    pages_used += rank.kv_pages_used;
    preemptions += static_cast<double>(rank.preemptions);
  }
  const auto one = [&](const std::string& name, const std::string& help, double value,
                       MetricType type = MetricType::Gauge) {
    MetricFamily family = NewFamily(name, help, type);
    Add(&family, model_label, value);
    return family;
  };
  std::vector<MetricFamily> families = {
      one("epic_ready", "1: requests are served", status.ready ? 1 : 0),
      one("epic_requests_running", "Requests in a batch", status.requests_running),
      one("epic_requests_waiting", "Requests that wait for a place in a batch",
          status.requests_waiting),
      one("epic_kv_cache_usage_ratio", "Part of the KV pages in use",
          pages > 0 ? pages_used / pages : 0),
      one("epic_preemptions_total", "Sequences that gave their KV pages back to run again",
          preemptions, MetricType::Counter),
      one("epic_ranks", "Workers in the world", static_cast<double>(status.ranks.size())),
      one("epic_map_number", "Version of the map of experts within this coordinator's life",
          static_cast<double>(status.map_number)),
      one("epic_experts", "Experts of all layers", static_cast<double>(status.experts)),
      one("epic_experts_unhosted", "Experts that no rank holds",
          static_cast<double>(status.experts_unhosted)),
      one("epic_experts_unreplicated", "Experts that one rank alone holds",
          static_cast<double>(status.experts_unreplicated)),
      one("epic_frozen", "1: no rank is revoked on suspicion, no expert moved for evenness",
          status.frozen ? 1 : 0)};
  for (MetricFamily& family : RankFamilies(status)) families.push_back(std::move(family));
  for (MetricFamily& family : ExchangeFamilies(status)) families.push_back(std::move(family));
  return families;
}

std::vector<MetricFamily> FrontendMetrics::Families::RankFamilies(
    const ClusterStatus& status) const {
  MetricFamily ready = NewFamily("epic_rank_ready", "1: the rank takes requests");
  MetricFamily running = NewFamily("epic_rank_requests_running", "Requests in the rank's batch");
  MetricFamily used = NewFamily("epic_rank_kv_pages_used", "KV pages in use");
  MetricFamily pages = NewFamily("epic_rank_kv_pages", "KV pages that the rank has");
  MetricFamily age = NewFamily("epic_rank_last_step_age_seconds",
                               "Since the rank's last finished step, while it has work");
  MetricFamily steps = NewFamily("epic_rank_steps_total", "Steps finished", MetricType::Counter);
  for (const RankStatus& rank : status.ranks) {
    const Labels labels = {{"rank", absl::StrCat(rank.rank)}};
    Add(&ready, labels, rank.state == "ready" ? 1 : 0);
    Add(&running, labels, rank.running);
    Add(&used, labels, rank.kv_pages_used);
    Add(&pages, labels, rank.kv_page_count);
    Add(&age, labels, absl::ToDoubleSeconds(rank.last_step_age));
    Add(&steps, labels, static_cast<double>(rank.steps));
  }
  return {ready, running, used, pages, age, steps};
}

// What ranks report of their exchange of rows.
std::vector<MetricFamily> FrontendMetrics::Families::ExchangeFamilies(
    const ClusterStatus& status) const {
  struct Column {
    const char *name, *help;
    MetricType type;
    double (*read)(const RankStatus&);
  };
  constexpr MetricType kGauge = MetricType::Gauge, kCounter = MetricType::Counter;
  static const Column kColumns[] = {
      {"epic_rank_experts_held", "Experts that the rank holds", kGauge,
       [](const RankStatus& r) -> double { return r.experts_held; }},
      {"epic_rank_map_number", "Version of the map that the rank has", kGauge,
       [](const RankStatus& r) { return static_cast<double>(r.map_number); }},
      {"epic_rank_outstanding_dispatches", "Dispatches sent and not answered", kGauge,
       [](const RankStatus& r) -> double { return r.outstanding_dispatches; }},
      {"epic_rank_credits", "Credits granted to the rank and not used", kGauge,
       [](const RankStatus& r) { return static_cast<double>(r.credits); }},
      {"epic_rank_oldest_wait_seconds", "How long the rank has waited for another one", kGauge,
       [](const RankStatus& r) { return absl::ToDoubleSeconds(r.oldest_wait); }},
      {"epic_rank_last_report_age_seconds", "Since the rank's last report", kGauge,
       [](const RankStatus& r) { return absl::ToDoubleSeconds(r.last_report_age); }},
      {"epic_rank_resident_bytes", "Memory of the rank's process", kGauge,
       [](const RankStatus& r) { return static_cast<double>(r.resident_bytes); }},
      {"epic_rank_expert_rows_served_total", "Rows that the rank computed for experts", kCounter,
       [](const RankStatus& r) { return static_cast<double>(r.expert_rows_served); }},
      {"epic_rank_replayed_rows_total", "Rows sent again after a loss", kCounter,
       [](const RankStatus& r) { return static_cast<double>(r.replayed_rows); }},
      {"epic_rank_stale_frames_total", "Answers dropped: nobody waited for them any more", kCounter,
       [](const RankStatus& r) { return static_cast<double>(r.stale_frames); }},
      {"epic_rank_doorbell_rescues_total", "Sleeps that a timer ended: should be 0", kCounter,
       [](const RankStatus& r) { return static_cast<double>(r.doorbell_rescues); }},
      {"epic_rank_asleep_with_work_seconds_total",
       "Time that the rank slept although it had work: should be 0", kCounter,
       [](const RankStatus& r) { return absl::ToDoubleSeconds(r.asleep_with_work); }}};
  std::vector<MetricFamily> families;
  for (const Column& column : kColumns) {
    families.push_back(NewFamily(column.name, column.help, column.type));
    for (const RankStatus& rank : status.ranks) {
      Add(&families.back(), {{"rank", absl::StrCat(rank.rank)}}, column.read(rank));
    }
  }
  return families;
}

FrontendMetrics::FrontendMetrics(const Inference& inference) {
  const std::vector<std::string> names = inference.model().names;
  const std::string model = names.empty() ? "" : names.front();
  families_ = std::make_unique<Families>(inference,
                                         std::map<std::string, std::string>{{"model_name", model}});
  families_->model_label = {{"model_name", model}};
}

FrontendMetrics::~FrontendMetrics() = default;

void FrontendMetrics::AddCounter(const std::string& name, const std::string& help,
                                 std::function<double()> read) {
  families_->externals.push_back({name, help, MetricType::Counter, std::move(read)});
}

void FrontendMetrics::AddGauge(const std::string& name, const std::string& help,
                               std::function<double()> read) {
  families_->externals.push_back({name, help, MetricType::Gauge, std::move(read)});
}

void FrontendMetrics::OnAccepted(int prompt_tokens, int choices, int max_tokens) {
  families_->prompt_tokens.Increment(prompt_tokens);
  families_->request_prompt.Observe(prompt_tokens);
  families_->request_choices.Observe(choices);
  families_->request_max_tokens.Observe(max_tokens);
}

void FrontendMetrics::OnRefused(absl::StatusCode code) {
  families_->refused.Add({{"code", absl::StatusCodeToString(code)}}).Increment();
}

void FrontendMetrics::OnFirstToken(absl::Duration since_arrival) {
  families_->first_token.Observe(absl::ToDoubleSeconds(since_arrival));
}

void FrontendMetrics::OnTokens(int count) { families_->generation_tokens.Increment(count); }

void FrontendMetrics::OnNextToken(absl::Duration since_last) {
  families_->next_token.Observe(absl::ToDoubleSeconds(since_last));
}

void FrontendMetrics::OnFinished(const std::string& reason, absl::Duration since_arrival,
                                 int completion_tokens) {
  families_->finished.Add({{"finished_reason", reason}}).Increment();
  families_->latency.Observe(absl::ToDoubleSeconds(since_arrival));
  families_->request_generation.Observe(completion_tokens);
}

std::string FrontendMetrics::Text() {
  std::vector<MetricFamily> all = families_->StatusFamilies();
  for (const Families::External& external : families_->externals) {
    all.push_back(NewFamily(external.name, external.help, external.type));
    Add(&all.back(), {}, external.read());
  }
  for (MetricFamily& family : families_->registry.Collect()) all.push_back(std::move(family));
  std::vector<MetricFamily> page;
  for (const MetricFamily& family : all) {
    page.push_back(family);
    const auto alias = Aliases().find(family.name);
    if (alias == Aliases().end()) continue;
    page.push_back(family);
    page.back().name = alias->second;
  }
  return prometheus::TextSerializer().Serialize(page);
}

}  // namespace epic::coordinator
