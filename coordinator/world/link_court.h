// LinkCourt: who is to blame when ranks report that they cannot reach each other (protocol.md §4).
// A report accuses a link, not a rank. A plain object.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace epic::coordinator {

struct LinkVerdict {
  int rank = 0;  // to be revoked
  std::string evidence;
  bool witnessed = false;  // by two or more: most likely the process is gone
};

struct BrokenPair {
  int low = 0;
  int high = 0;
  std::string evidence;
};

class LinkCourt {
 public:
  // `settle`: how long judgements wait that more reports, or a process's end, may overturn.
  explicit LinkCourt(absl::Duration settle) : settle_(settle) {}

  void Accuse(int accuser, int accused, std::string evidence, absl::Time now);
  void Withdraw(int accuser, int accused);
  void Forget(int rank);

  // A rank accused by two or more that nobody else accuses, at once; else one that has accused two
  // or more for `settle`. At most one within a second, counting those of CountRevocation.
  std::optional<LinkVerdict> Judge(absl::Time now);
  // Pairs of which one has accused the other for `settle`, and no verdict is due.
  std::vector<BrokenPair> Pairs(absl::Time now) const;
  // Whether a revocation is allowed yet.
  bool MayRevoke(absl::Time now) const { return now >= next_revocation_at_; }
  void CountRevocation(absl::Time now) { next_revocation_at_ = now + absl::Seconds(1); }

 private:
  struct Accusation {
    std::string evidence;
    absl::Time since;
  };
  // Whether anyone but `apart_from` accuses the rank.
  bool Accused(int rank, int apart_from) const;
  std::optional<LinkVerdict> JudgeAccused() const;
  std::optional<LinkVerdict> JudgeAccusers(absl::Time now) const;

  const absl::Duration settle_;
  std::map<std::pair<int, int>, Accusation> accusations_;  // (accuser, accused)
  std::map<int, std::set<int>> accusers_;                  // by accused
  absl::Time next_revocation_at_ = absl::InfinitePast();
};

}  // namespace epic::coordinator
