// The list of all metrics: what a dashboard asks for must stay.
#include "coordinator/frontend/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

const char* const kGauges[] = {
    "epic_experts",
    "epic_experts_unhosted",
    "epic_experts_unreplicated",
    "epic_frozen",
    "epic_kv_cache_usage_ratio",
    "epic_map_number",
    "epic_rank_credits",
    "epic_rank_experts_held",
    "epic_rank_kv_pages",
    "epic_rank_kv_pages_used",
    "epic_rank_last_report_age_seconds",
    "epic_rank_last_step_age_seconds",
    "epic_rank_map_number",
    "epic_rank_oldest_wait_seconds",
    "epic_rank_outstanding_dispatches",
    "epic_rank_ready",
    "epic_rank_requests_running",
    "epic_rank_resident_bytes",
    "epic_ranks",
    "epic_ready",
    "epic_requests_running",
    "epic_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
};

const char* const kCounters[] = {
    "epic_generation_tokens_total",       "epic_preemptions_total",
    "epic_prompt_tokens_total",           "epic_rank_asleep_with_work_seconds_total",
    "epic_rank_doorbell_rescues_total",   "epic_rank_expert_rows_served_total",
    "epic_rank_prompt_tokens_computed_total",
    "epic_rank_replayed_rows_total",      "epic_rank_stale_frames_total",
    "epic_rank_step_seconds_total",       "epic_rank_steps_total",
    "epic_requests_finished_total",       "epic_requests_refused_total",
    "vllm:generation_tokens_total",       "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",           "vllm:request_success_total",
};

const char* const kHistograms[] = {
    "epic_inter_token_latency_seconds", "epic_request_choices",
    "epic_request_generation_tokens",   "epic_request_latency_seconds",
    "epic_request_max_tokens",          "epic_request_prompt_tokens",
    "epic_time_to_first_token_seconds", "vllm:e2e_request_latency_seconds",
    "vllm:inter_token_latency_seconds", "vllm:request_generation_tokens",
    "vllm:request_params_max_tokens",   "vllm:request_params_n",
    "vllm:request_prompt_tokens",       "vllm:time_to_first_token_seconds",
};

TEST(MetricsTest, ThePageHasTheseMetricsAndNoOther) {
  FakeWorld world;
  world.metrics.OnRefused(absl::StatusCode::kUnavailable);  // its first line comes with the first
  std::set<std::string> expected;
  for (const char* name : kGauges) expected.insert(absl::StrCat(name, " gauge"));
  for (const char* name : kCounters) expected.insert(absl::StrCat(name, " counter"));
  for (const char* name : kHistograms) expected.insert(absl::StrCat(name, " histogram"));
  std::set<std::string> found;
  const std::vector<std::string> lines = absl::StrSplit(world.metrics_page.Text(), '\n');
  for (const std::string& line : lines) {
    if (line.starts_with("# TYPE ")) found.insert(line.substr(7));
  }
  EXPECT_THAT(found, testing::ElementsAreArray(expected));
}

}  // namespace
}  // namespace epic::coordinator
