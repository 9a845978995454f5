// Two ControlLinks joined in one process, for tests and for embedding.
#pragma once

#include <memory>
#include <utility>

#include "base/env.h"
#include "cluster/control_link.h"

namespace epic::cluster {

// Each end is destroyed by its holder; the other's on_down is then called. Messages pass through
// `loop`'s mailbox, in order. The loop outlives both ends and runs all handlers.
std::pair<std::unique_ptr<ControlLink>, std::unique_ptr<ControlLink>> NewLoopbackPair(
    Loop& loop, ControlLinkHandlers first, ControlLinkHandlers second);

}  // namespace epic::cluster
