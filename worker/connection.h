// Connection: the link to the coordinator, dialled anew under a new generation when it is down for
// good or this generation was revoked.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "base/env.h"
#include "cluster/control_link.h"
#include "cluster/join_token.h"

namespace epic::worker {

// Loop thread only.
class Connection {
 public:
  struct Handlers {
    std::function<void(const v1::ControlMessage&)> on_message;
    // A link to a coordinator that knows nothing of this process; null: none for now.
    std::function<void(cluster::ControlLink*)> on_link;
  };

  // `token`: as DialControl takes it.
  Connection(Env env, std::string address, v1::WorkerIdentity identity,
             std::optional<cluster::JoinToken> token, Handlers handlers);

  // Leaves the present link, once the caller's handler has returned, and dials as a new generation.
  void Renew();

  // What is said from the next dial on.
  void SetIdentity(v1::WorkerIdentity identity) { identity_ = std::move(identity); }
  // Of the present link.
  uint64_t generation() const { return generation_; }
  // Why the coordinator will never take this worker.
  const absl::Status& refusal() const { return refusal_; }

 private:
  void Dial();
  void OnDown(absl::Status status);

  Env env_;
  const std::string address_;
  v1::WorkerIdentity identity_;
  const std::optional<cluster::JoinToken> token_;
  const Handlers handlers_;
  uint64_t generation_ = 0;
  std::unique_ptr<cluster::ControlLink> link_;
  absl::Status refusal_;
};

}  // namespace epic::worker
