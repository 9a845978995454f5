#include "coordinator/metrics/rank_columns.h"

#include "absl/time/time.h"
#include "base/check.h"

namespace epic::coordinator {
namespace {

constexpr ColumnKind kGauge = ColumnKind::kGauge, kCounter = ColumnKind::kCounter;
constexpr ColumnUnit kCount = ColumnUnit::kCount, kBytes = ColumnUnit::kBytes,
                     kSeconds = ColumnUnit::kSeconds;

// Dashboards ask for a metric by its name, so the name never changes, even where it differs from
// the column's. /metrics tells "waiting" and "preemptions" as sums over all ranks
// (metrics_page.cc). A double holds each whole number up to 2^53, so no count or size loses a
// digit.
constexpr RankColumn kColumns[] = {
    {"ready", "epic_rank_ready", "1: the rank takes requests", kGauge, kCount,
     [](const RankStatus& r) { return r.state == "ready" ? 1.0 : 0.0; }},
    {"running", "epic_rank_requests_running", "Requests in the rank's batch", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.running; }},
    {"waiting", nullptr, "Requests that wait for the rank's batch", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.waiting; }},
    {"sequences", nullptr, "Sequences given to the rank and not ended", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.sequences; }},
    {"kv_pages_used", "epic_rank_kv_pages_used", "KV pages in use", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.kv_pages_used; }},
    {"kv_page_count", "epic_rank_kv_pages", "KV pages that the rank has", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.kv_page_count; }},
    // The age is 0 while the rank has no work, so an alert on it needs no second condition.
    {"last_step_age_seconds", "epic_rank_last_step_age_seconds",
     "Since the rank's last finished step, while it has work", kGauge, kSeconds,
     [](const RankStatus& r) { return absl::ToDoubleSeconds(r.last_step_age); }},
    {"steps", "epic_rank_steps_total", "Steps finished", kCounter, kCount,
     [](const RankStatus& r) { return static_cast<double>(r.steps); }},
    {"step_seconds", "epic_rank_step_seconds_total",
     "Time that the rank's steps took, waits for other ranks included", kCounter, kSeconds,
     [](const RankStatus& r) { return absl::ToDoubleSeconds(r.step_time); }},
    {"prompt_tokens_computed", "epic_rank_prompt_tokens_computed_total",
     "Tokens of prompts computed; those computed again count again", kCounter, kCount,
     [](const RankStatus& r) { return static_cast<double>(r.prompt_tokens_computed); }},
    {"preemptions", nullptr, "Sequences that gave their KV pages back to run again", kCounter,
     kCount, [](const RankStatus& r) { return static_cast<double>(r.preemptions); }},
    {"loaded_bytes", nullptr, "Bytes of weights loaded so far", kGauge, kBytes,
     [](const RankStatus& r) { return static_cast<double>(r.loaded_bytes); }},
    {"total_bytes", nullptr, "Bytes of weights that the rank loads", kGauge, kBytes,
     [](const RankStatus& r) { return static_cast<double>(r.total_bytes); }},
    {"expert_slots", nullptr, "Experts that the rank has room for", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.expert_slots; }},
    {"experts_held", "epic_rank_experts_held", "Experts that the rank holds", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.experts_held; }},
    {"map_number", "epic_rank_map_number", "Version of the map that the rank has", kGauge, kCount,
     [](const RankStatus& r) { return static_cast<double>(r.map_number); }},
    {"outstanding_dispatches", "epic_rank_outstanding_dispatches",
     "Dispatches sent and not answered", kGauge, kCount,
     [](const RankStatus& r) -> double { return r.outstanding_dispatches; }},
    {"credits", "epic_rank_credits", "Credits granted to the rank and not used", kGauge, kCount,
     [](const RankStatus& r) { return static_cast<double>(r.credits); }},
    {"oldest_wait_seconds", "epic_rank_oldest_wait_seconds",
     "How long the rank has waited for another one", kGauge, kSeconds,
     [](const RankStatus& r) { return absl::ToDoubleSeconds(r.oldest_wait); }},
    {"last_report_age_seconds", "epic_rank_last_report_age_seconds", "Since the rank's last report",
     kGauge, kSeconds,
     [](const RankStatus& r) { return absl::ToDoubleSeconds(r.last_report_age); }},
    {"resident_bytes", "epic_rank_resident_bytes", "Memory of the rank's process", kGauge, kBytes,
     [](const RankStatus& r) { return static_cast<double>(r.resident_bytes); }},
    {"expert_rows_served", "epic_rank_expert_rows_served_total",
     "Rows that the rank computed for experts", kCounter, kCount,
     [](const RankStatus& r) { return static_cast<double>(r.expert_rows_served); }},
    {"replayed_rows", "epic_rank_replayed_rows_total",
     "Rows of generated tokens that the rank computed again, after a loss or a preemption",
     kCounter, kCount, [](const RankStatus& r) { return static_cast<double>(r.replayed_rows); }},
    {"stale_frames", "epic_rank_stale_frames_total",
     "Answers dropped: nobody waited for them any more", kCounter, kCount,
     [](const RankStatus& r) { return static_cast<double>(r.stale_frames); }},
    {"doorbell_rescues", "epic_rank_doorbell_rescues_total",
     "Sleeps that a timer ended: should be 0", kCounter, kCount,
     [](const RankStatus& r) { return static_cast<double>(r.doorbell_rescues); }},
    {"asleep_with_work_seconds", "epic_rank_asleep_with_work_seconds_total",
     "Time that the rank slept although it had work: should be 0", kCounter, kSeconds,
     [](const RankStatus& r) { return absl::ToDoubleSeconds(r.asleep_with_work); }},
};

using google::protobuf::FieldDescriptor;

// A field's type was chosen for its readers; the table knows all numbers as doubles.
void SetNumber(const FieldDescriptor* field, double value, v1::RankState* state) {
  const google::protobuf::Reflection& reflection = *state->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.SetInt32(state, field, static_cast<int32_t>(value));
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.SetInt64(state, field, static_cast<int64_t>(value));
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection.SetUInt64(state, field, static_cast<uint64_t>(value));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.SetDouble(state, field, value);
    default:
      CHECK(false) << field->full_name() << " is not a number that a column can fill";
  }
}

}  // namespace

absl::Span<const RankColumn> RankColumns() { return kColumns; }

v1::RankState RankStateFrom(const RankStatus& rank) {
  v1::RankState state;
  state.set_rank(rank.rank);
  state.set_generation(rank.generation);
  state.set_state(rank.state);
  state.set_description(rank.description);
  state.set_profile(rank.profile);
  state.set_attention(rank.attention);
  state.set_experts(rank.experts);
  state.set_host(rank.host);
  state.set_activity(rank.activity);
  for (const RankColumn& column : kColumns) {
    // Operators are told a column as soon as the proto has a field of its name; a column without a
    // field is for /ready and /metrics alone.
    const FieldDescriptor* field = state.GetDescriptor()->FindFieldByName(column.name);
    if (field != nullptr) SetNumber(field, column.read(rank), &state);
  }
  return state;
}

}  // namespace epic::coordinator
