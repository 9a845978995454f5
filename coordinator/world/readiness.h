// Readiness: what the world can do now: which ranks take sequences, whether requests can be served,
// and if not, what is missing. A view of World's other parts; it holds no state of its own.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "coordinator/world/drains.h"
#include "coordinator/world/expert_group.h"
#include "coordinator/world/membership.h"
#include "coordinator/world/verdicts.h"

namespace epic::coordinator {

class Readiness {
 public:
  // All outlive the view. `group`: the ranks that exchange messages; empty: none has joined so far.
  // `expect_ranks`: as StartRule's.
  Readiness(const Membership& members, const Drains& drains, const Verdicts& verdicts,
            const std::optional<ExpertGroup>& group, int expect_ranks)
      : members_(members),
        drains_(drains),
        verdicts_(verdicts),
        group_(group),
        expect_ranks_(expect_ranks) {}

  // OK: requests can be served. Unavailable, naming what is missing: they cannot.
  absl::Status Ready() const;
  // As Ready, but OK also while experts without a holder are being loaded.
  absl::Status ReadySoon() const;

  // Whether the rank may be given sequences.
  bool Routable(int rank) const;
  int CountRoutable(int without) const;
  // loading, ready, draining or refused. The rank is in the world.
  std::string State(int rank) const;
  // OK: the other ranks can do the work of this one. FailedPrecondition, naming the shortfall: they
  // cannot. The rank is in the world.
  absl::Status CheckDispensable(int rank) const;

 private:
  bool started() const { return group_ && group_->started(); }
  // Whether a rank serves that does not need the group.
  bool OtherRankServes() const;
  // Why no rank serves.
  std::string WaitingFor() const;
  // What the ranks that exchange messages lack; empty: nothing that placement could tell.
  std::string MissingFromGroup() const;
  std::string WaitOf(int rank, const Member& member) const;
  std::string UnhostedText() const;

  const Membership& members_;
  const Drains& drains_;
  const Verdicts& verdicts_;
  const std::optional<ExpertGroup>& group_;
  const int expect_ranks_;
};

}  // namespace epic::coordinator
