// Drains: which ranks are being emptied so that they can end, from the wish to the last word. A
// plain object; World decides whether a drain may begin and where experts and sequences go.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "absl/time/time.h"

namespace epic::coordinator {

// One life of a drain. It moves downwards in this list, or back to kNone when it is cancelled.
enum class DrainState : uint8_t {
  kNone,
  kByOperator,         // an operator asked for it; losses that make the rank needed take it back
  kRequestedByWorker,  // its worker asked for it, or takes no new sequences
  kMustEnd,            // its worker ends although the others cannot do its work
  kToldToEnd,          // nothing is left there, and the rank was told that it may end
};

class Drains {
 public:
  // `move_after`: how long sequences of a draining rank may go on there before they move.
  explicit Drains(absl::Duration move_after) : move_after_(move_after) {}

  DrainState state(int rank) const;
  bool draining(int rank) const { return state(rank) != DrainState::kNone; }
  // Whether the rank's drain can still be cancelled: not if the rank ends anyway.
  bool cancellable(int rank) const;
  // Ranks whose drains can be cancelled, ascending.
  std::vector<int> Cancellable() const;

  // The rank must not drain yet. The drain counts from `now` on.
  void Begin(int rank, DrainState state, absl::Time now);
  // Moves a drain to a later state.
  void Escalate(int rank, DrainState state);
  // Only for a cancellable drain.
  void Cancel(int rank);
  // The rank is out of the world.
  void Forget(int rank) { drains_.erase(rank); }

  // What a rank still has.
  struct Remainder {
    int sequences = 0;
    bool experts = false;  // that it holds
  };
  struct Due {
    std::vector<int> move;     // ranks whose sequences have stayed too long
    std::vector<int> may_end;  // ranks on which nothing is left; their state is kToldToEnd now
  };
  // To be called regularly. A rank in kMustEnd does not wait for its experts to move.
  Due Advance(absl::Time now, const std::function<Remainder(int rank)>& remainder);

 private:
  struct Drain {
    DrainState state = DrainState::kNone;
    absl::Time since;
  };

  const absl::Duration move_after_;
  std::map<int, Drain> drains_;  // by rank; never in kNone
};

}  // namespace epic::coordinator
