// Connection: the link to the coordinator, dialled anew under a new generation when it is down for
// good or this generation was revoked.
//
//   Connection connection(env, dial, handlers);
//   connection.Dial();      // once; after that the connection dials by itself
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "base/env.h"
#include "cluster/control_link.h"

namespace epic::worker {

// Opens a link to the coordinator, as cluster::DialControl does: it returns at once, and what is
// sent meanwhile waits for a connection.
using ControlDialer = std::function<std::unique_ptr<cluster::ControlLink>(
    v1::ControlHello hello, cluster::ControlLinkHandlers handlers)>;

// One thread, that of env.loop.
class Connection {
 public:
  struct Handlers {
    // The identity that this worker gives in the next hello.
    std::function<v1::WorkerIdentity()> identity;
    std::function<void(const v1::ControlMessage&)> on_message;
    // A link to a coordinator that knows nothing of this process; null: none for now.
    std::function<void(cluster::ControlLink*)> on_link;
  };

  // All handlers are needed. The loop runs no task of the connection once it is destroyed.
  Connection(Env env, ControlDialer dial, Handlers handlers);

  // The first dial.
  void Dial();
  // Leaves the present link, once the caller's handler has returned, and dials as a new generation.
  void Renew();
  // From now on the end of the link is the end of the connection: nothing is dialled any more.
  void Retire() { retired_ = true; }

  // The generation of the present link.
  uint64_t generation() const { return generation_; }
  // Why the coordinator will never take this worker.
  const absl::Status& refusal() const { return refusal_; }

 private:
  void OnDown(absl::Status why);

  const Env env_;
  const ControlDialer dial_;
  const Handlers handlers_;
  uint64_t generation_ = 0;
  std::unique_ptr<cluster::ControlLink> link_;
  bool retired_ = false;
  absl::Status refusal_;
};

}  // namespace epic::worker
