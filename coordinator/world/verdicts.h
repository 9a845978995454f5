// Verdicts: who is revoked because it has stopped or cannot be reached, and whose sequences move
// because of one broken link. It weighs what ranks report (Liveness) and of what they accuse each
// other (LinkCourt). A plain object: World carries its rulings out.
//
// Each loss may be the cause of what else is seen, so after a ruling that revokes a rank nothing
// more is judged by the same call.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/world/link_court.h"
#include "coordinator/world/liveness.h"

namespace epic::coordinator {

struct Ruling {
  enum class Kind {
    kRevoke,         // `rank` leaves the world
    kSuspect,        // `rank` would be revoked if the world were not frozen
    kLinkBroken,     // between `rank` and `other`: news
    kLinkHealed,     // between `rank` and `other`
    kMoveSequences,  // those of `rank` go on elsewhere; it gets none while it cannot reach `other`
  };
  Kind kind = Kind::kRevoke;
  int rank = 0;
  int other = 0;
  std::string evidence;
  // kRevoke: its process is most likely gone, so what it computed may be the cause.
  bool unexplained = false;
};

// What Verdicts must know of the world to judge a broken link.
class LinkFacts {
 public:
  virtual ~LinkFacts() = default;
  virtual bool IsMember(int rank) const = 0;
  // Whether the rank computes sequences whose rows only `other` has an expert for.
  virtual bool Needs(int rank, int other) const = 0;
  // Whether another rank takes sequences.
  virtual bool HasElsewhere(int rank) const = 0;
  virtual absl::Time JoinedAt(int rank) const = 0;
};

class Verdicts {
 public:
  // `link_settle`: as LinkCourt's `settle`.
  Verdicts(const LivenessLimits& limits, absl::Duration link_settle)
      : liveness_(limits), links_(link_settle) {}

  Liveness& liveness() { return liveness_; }
  const Liveness& liveness() const { return liveness_; }
  LinkCourt& links() { return links_; }

  // Nobody is revoked while frozen.
  void Freeze(bool frozen);
  bool frozen() const { return frozen_; }

  // Nothing that was reported by the rank or about it counts any more.
  void Disregard(int rank);
  // The rank is out of the world.
  void Forget(int rank);

  // A rank that reports no progress.
  std::optional<Ruling> JudgeProgress(absl::Time now);
  // A rank that several others cannot reach, or that cannot reach several others.
  std::optional<Ruling> JudgeAccusations(absl::Time now);
  // Links that are broken though neither end is at fault for all that is known.
  std::vector<Ruling> JudgeBrokenLinks(absl::Time now, const LinkFacts& facts);

  // Why the rank gets no sequences for now; empty: it may get some.
  std::string Avoided(int rank) const;

 private:
  void NoteHealed(const std::vector<BrokenPair>& pairs, std::vector<Ruling>& rulings);
  // True: a rank was revoked.
  bool JudgePair(const BrokenPair& pair, absl::Time now, const LinkFacts& facts,
                 std::vector<Ruling>& rulings);

  Liveness liveness_;
  LinkCourt links_;
  bool frozen_ = false;
  std::set<int> suspected_;                     // of whom a ruling said so in this freeze
  std::set<std::pair<int, int>> broken_links_;  // of which a ruling said so: (lower, higher rank)
  std::map<int, std::string> avoided_;          // why, by rank
};

}  // namespace epic::coordinator
