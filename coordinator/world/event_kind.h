// EventKind: what an event of the log is about. Its text is made at the edges.
#pragma once

#include <cstdint>
#include <string_view>

namespace epic::coordinator {

enum class EventKind : uint8_t {
  kJoin,            // a worker became a rank
  kRefuse,          // a worker, or what a rank says, cannot be of use
  kStart,           // experts begin to be placed
  kPlace,           // a rank is ordered to load experts
  kReady,           // a rank takes sequences
  kExpertsReady,    // a rank has loaded what it was ordered to
  kExpertsFailed,   // a rank could not
  kMap,             // a new map was published
  kLost,            // the process of a rank is gone
  kRevoke,          // a rank was put out of the world
  kGoodbye,         // a rank ended after a drain
  kDrain,           // a drain began, changed or ended
  kFreeze,          // an operator froze the world, or unfroze it
  kLink,            // a link between two ranks broke or healed
  kSuspect,         // a rank or a request is suspected
  kEpoch,           // ranks form an epoch
  kResubmit,        // sequences go on at another rank
  kQuarantine,      // a request is not tried again
};

// As JSON lines and clients of the operators' service see it: "experts ready".
std::string_view NameOf(EventKind kind);

}  // namespace epic::coordinator
