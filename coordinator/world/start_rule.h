// StartRule: when a world that came together begins to place experts. A value.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace epic::coordinator {

// What the rule looks at: the ranks that exchange messages, but for `joined`, which counts all.
struct StartFacts {
  int joined = 0;
  bool has_attention = false;
  bool has_experts = false;
  int64_t slots_missing = 0;  // for all experts; at most 0: none
  absl::Duration since_last_join;
};

struct StartRule {
  // Ranks to wait for; 0: the world starts once nobody has joined for `quiet`.
  int expect_ranks = 0;
  absl::Duration quiet = absl::Seconds(2);

  bool MayStart(const StartFacts& facts) const {
    if (!facts.has_attention || !facts.has_experts || facts.slots_missing > 0) return false;
    return expect_ranks > 0 ? facts.joined >= expect_ranks : facts.since_last_join >= quiet;
  }
};

}  // namespace epic::coordinator
