#include "cli/operators_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

namespace epic::cli {
namespace {

absl::Status StatusFrom(const grpc::Status& status) {
  // The numbers of gRPC's codes and of Abseil's are the same.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// The coordinator answers operators from its own state and waits for no rank, so one that takes 5 s
// does not answer at all.
void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(
      gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_seconds(5, GPR_TIMESPAN)));
}

std::string Roles(const v1::RankState& rank) {
  if (rank.attention() && rank.experts()) return "both";
  return rank.attention() ? "attention" : "experts";
}

std::vector<std::string> Row(const v1::RankState& rank) {
  std::string state = rank.state();
  // A rank that has not read its checkpoint yet reports no total.
  if (state == "loading" && rank.total_bytes() > 0) {
    absl::StrAppend(&state, " ", rank.loaded_bytes() * 100 / rank.total_bytes(), "%");
  }
  return {
      absl::StrCat(rank.rank()),
      Roles(rank),
      state,
      rank.expert_slots() > 0 ? absl::StrCat(rank.experts_held(), "/", rank.expert_slots()) : "-",
      rank.attention() ? absl::StrCat(rank.running(), "+", rank.waiting()) : "-",
      rank.attention() ? absl::StrCat(rank.kv_pages_used(), "/", rank.kv_page_count()) : "-",
      absl::StrCat(rank.map_number()),
      absl::StrFormat("%.1f MiB", static_cast<double>(rank.resident_bytes()) / (1 << 20)),
      rank.host(),
      rank.activity()};
}

}  // namespace

void AddOperatorsOption(CLI::App& command, std::string& address) {
  command
      .add_option("--operators", address,
                  "The address where the coordinator listens for operators: host:port or "
                  "unix:/path.")
      ->capture_default_str();
}

OperatorsClient::OperatorsClient(const std::string& address)
    : stub_(
          v1::Cluster::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {}

absl::StatusOr<v1::ClusterState> OperatorsClient::GetState() {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::ClusterState state;
  const grpc::Status status = stub_->GetState(&context, {}, &state);
  if (!status.ok()) return StatusFrom(status);
  return state;
}

absl::StatusOr<v1::ListEventsResponse> OperatorsClient::ListEvents(uint64_t from, int count_max) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::ListEventsRequest request;
  request.set_from(from);
  request.set_count_max(count_max);
  v1::ListEventsResponse response;
  const grpc::Status status = stub_->ListEvents(&context, request, &response);
  if (!status.ok()) return StatusFrom(status);
  return response;
}

absl::Status OperatorsClient::WatchEvents(
    uint64_t from, const std::function<void(const v1::ClusterEvent&)>& on_event) {
  grpc::ClientContext context;
  v1::WatchEventsRequest request;
  request.set_from(from);
  // There is no deadline: a stream of events ends with the coordinator, or with this process.
  const auto reader = stub_->WatchEvents(&context, request);
  v1::ClusterEvent event;
  while (reader->Read(&event)) on_event(event);
  return StatusFrom(reader->Finish());
}

absl::Status OperatorsClient::Fence(int rank) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::FenceRequest request;
  request.set_rank(rank);
  v1::FenceResponse response;
  return StatusFrom(stub_->Fence(&context, request, &response));
}

absl::Status OperatorsClient::Freeze(bool frozen) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::FreezeRequest request;
  request.set_frozen(frozen);
  v1::FreezeResponse response;
  return StatusFrom(stub_->Freeze(&context, request, &response));
}

absl::Status OperatorsClient::Drain(int rank, bool cancel) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::DrainRequest request;
  request.set_rank(rank);
  request.set_cancel(cancel);
  v1::DrainResponse response;
  return StatusFrom(stub_->Drain(&context, request, &response));
}

std::string StateTable(const v1::ClusterState& state) {
  std::string text = state.ready() ? "ready" : absl::StrCat("not ready: ", state.reason());
  absl::StrAppend(&text, state.frozen() ? ", frozen" : "", "\n");
  if (state.experts() > 0) {
    absl::StrAppendFormat(&text, "map %d: %d experts, %d unhosted, %d on one rank alone\n",
                          state.map_number(), state.experts(), state.experts_unhosted(),
                          state.experts_unreplicated());
  }
  absl::StrAppendFormat(&text, "requests: %d running, %d waiting\n", state.requests_running(),
                        state.requests_waiting());
  std::vector<std::vector<std::string>> rows = {{"rank", "roles", "state", "experts", "requests",
                                                 "kv pages", "map", "memory", "host", "activity"}};
  for (const v1::RankState& rank : state.ranks()) rows.push_back(Row(rank));
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppendFormat(&line, "%-*s", static_cast<int>(widths[i] + 2), row[i]);
    }
    while (line.back() == ' ') line.pop_back();
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

std::string EventLine(const v1::ClusterEvent& event) {
  const absl::Time time = absl::UnixEpoch() + absl::Seconds(event.time());
  std::string line = absl::StrCat(
      event.number(), "  ", absl::FormatTime("%Y-%m-%d %H:%M:%E3S", time, absl::LocalTimeZone()),
      "  ", event.kind());
  if (event.rank() >= 0) absl::StrAppend(&line, "  rank ", event.rank());
  return absl::StrCat(line, "  ", event.text(), "\n");
}

}  // namespace epic::cli
