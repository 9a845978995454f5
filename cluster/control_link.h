// ControlLink: one end of the numbered, acknowledged stream between the coordinator and a worker.
// Messages arrive once and in order, over any number of redials, as long as both processes live.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::cluster {

// How often a rank says what it does (v1.RankReport): silence is how a hang is known.
inline constexpr absl::Duration kReportInterval = absl::Milliseconds(100);

// Loop thread only (base/env.h); handlers are called there.
class ControlLink {
 public:
  virtual ~ControlLink() = default;
  // Never blocks: queued until acknowledged.
  virtual void Send(v1::ControlMessage message) = 0;
};

struct ControlLinkHandlers {
  std::function<void(const v1::ControlMessage&)> on_message;
  // The peer's life is over (another generation or term answered, or the link was closed for good):
  // what was not acknowledged is lost. Called at most once, last.
  std::function<void(absl::Status)> on_down;
};

}  // namespace epic::cluster
