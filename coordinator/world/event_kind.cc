#include "coordinator/world/event_kind.h"

#include "base/check.h"

namespace epic::coordinator {

// Operators' scripts match these words, so a kind keeps its name.
std::string_view NameOf(EventKind kind) {
  switch (kind) {
    case EventKind::kJoin:
      return "join";
    case EventKind::kRefuse:
      return "refuse";
    case EventKind::kStart:
      return "start";
    case EventKind::kPlace:
      return "place";
    case EventKind::kReady:
      return "ready";
    case EventKind::kExpertsReady:
      return "experts ready";
    case EventKind::kExpertsFailed:
      return "experts failed";
    case EventKind::kMap:
      return "map";
    case EventKind::kLost:
      return "lost";
    case EventKind::kRevoke:
      return "revoke";
    case EventKind::kGoodbye:
      return "goodbye";
    case EventKind::kDrain:
      return "drain";
    case EventKind::kFreeze:
      return "freeze";
    case EventKind::kLink:
      return "link";
    case EventKind::kSuspect:
      return "suspect";
    case EventKind::kEpoch:
      return "epoch";
    case EventKind::kResubmit:
      return "resubmit";
    case EventKind::kQuarantine:
      return "quarantine";
  }
  CHECK(false) << "event kind " << static_cast<int>(kind);
  return "";
}

}  // namespace epic::coordinator
