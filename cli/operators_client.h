// OperatorsClient: what `epic admin` and `epic top` ask of a running coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "proto/epic/v1/cluster.grpc.pb.h"

namespace epic::cli {

// Adds --operators.
void AddOperatorsOption(CLI::App& command, std::string& address);

// One thread. Errors are the coordinator's, or Unavailable.
class OperatorsClient {
 public:
  explicit OperatorsClient(const std::string& address);

  absl::StatusOr<v1::ClusterState> GetState();
  // Events from number `from` on (0: the oldest that is kept), at most `count_max` (0: all).
  absl::StatusOr<v1::ListEventsResponse> ListEvents(uint64_t from, int count_max);
  // Calls `on_event` for each event from `from` on, until the coordinator ends.
  absl::Status WatchEvents(uint64_t from,
                           const std::function<void(const v1::ClusterEvent&)>& on_event);
  absl::Status Fence(int rank);
  absl::Status Freeze(bool frozen);
  absl::Status Drain(int rank, bool cancel);

 private:
  const std::unique_ptr<v1::Cluster::Stub> stub_;
};

// Tables for people; each ends in a newline.
std::string StateTable(const v1::ClusterState& state);
std::string EventLine(const v1::ClusterEvent& event);

}  // namespace epic::cli
