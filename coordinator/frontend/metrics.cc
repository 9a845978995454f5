#include "coordinator/frontend/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>

#include <map>
#include <string>

#include "coordinator/metrics/metrics_page.h"

namespace epic::coordinator {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

// From one step of a small model to the longest wait for a first token; powers of four for tokens.
const Buckets kSeconds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                          0.5,   1,     2,     5,    10,   20,   60,  300};
const Buckets kTokens = {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144};
const Buckets kChoices = {1, 2, 4, 8, 16, 32, 64, 128};

prometheus::Counter& NewCounter(MetricsPage& page, const std::string& name,
                                const std::string& help) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Labels(page.labels())
      .Register(page.registry())
      .Add({});
}

// A family whose counters differ in a label of their own.
prometheus::Family<prometheus::Counter>& NewCounters(MetricsPage& page, const std::string& name,
                                                     const std::string& help) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Labels(page.labels())
      .Register(page.registry());
}

prometheus::Histogram& NewHistogram(MetricsPage& page, const std::string& name,
                                    const std::string& help, const Buckets& buckets) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Labels(page.labels())
      .Register(page.registry())
      .Add({}, buckets);
}

}  // namespace

// The references point into the page's registry, which outlives this and never removes a metric.
struct FrontendMetrics::Families {
  explicit Families(MetricsPage& page)
      : prompt_tokens(NewCounter(page, "epic_prompt_tokens_total", "Tokens of accepted prompts")),
        generation_tokens(NewCounter(page, "epic_generation_tokens_total", "Tokens generated")),
        refused(NewCounters(page, "epic_requests_refused_total",
                            "Requests refused at the door, by status code")),
        finished(NewCounters(page, "epic_requests_finished_total", "Choices ended, by reason")),
        first_token(NewHistogram(page, "epic_time_to_first_token_seconds",
                                 "From a request's arrival to its first token", kSeconds)),
        next_token(NewHistogram(page, "epic_inter_token_latency_seconds",
                                "From one token of a choice to the next", kSeconds)),
        latency(NewHistogram(page, "epic_request_latency_seconds",
                             "From a request's arrival to its end", kSeconds)),
        request_prompt(
            NewHistogram(page, "epic_request_prompt_tokens", "Tokens of a prompt", kTokens)),
        request_generation(NewHistogram(page, "epic_request_generation_tokens",
                                        "Tokens generated for a choice", kTokens)),
        request_max_tokens(
            NewHistogram(page, "epic_request_max_tokens", "max_tokens of a request", kTokens)),
        request_choices(NewHistogram(page, "epic_request_choices", "n of a request", kChoices)) {
    // There from the start, so that rates work.
    for (const char* reason : {"stop", "length", "abort", "error"}) {
      finished.Add({{"finished_reason", reason}});
    }
  }

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

FrontendMetrics::FrontendMetrics(MetricsPage& page) : families_(std::make_unique<Families>(page)) {}

FrontendMetrics::~FrontendMetrics() = default;

void FrontendMetrics::OnAccepted(int prompt_tokens, int choices, int max_tokens) {
  // Each prompt is counted once when it is accepted, whatever its number of choices.
  families_->prompt_tokens.Increment(prompt_tokens);
  families_->request_prompt.Observe(prompt_tokens);
  families_->request_choices.Observe(choices);
  families_->request_max_tokens.Observe(max_tokens);
}

void FrontendMetrics::OnRefused(absl::StatusCode code) {
  // For labels that it has already, Add returns the counter that is there.
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
  // Choices end one by one, so a request with n choices is counted n times in all three.
  families_->finished.Add({{"finished_reason", reason}}).Increment();
  families_->latency.Observe(absl::ToDoubleSeconds(since_arrival));
  families_->request_generation.Observe(completion_tokens);
}

}  // namespace epic::coordinator
