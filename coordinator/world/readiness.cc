#include "coordinator/world/readiness.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::coordinator {

bool Readiness::Routable(int rank) const {
  const Member* const member = members_.Find(rank);
  if (member == nullptr) return false;
  if (!member->ready || !member->refusal.empty() || drains_.draining(rank)) return false;
  if (!verdicts_.Avoided(rank).empty()) return false;
  // A rank that no map names yet does not know where its rows would go.
  // The ranks of an epoch have waited for each other before any of them said that it is ready.
  return !member->exchanges_messages() || (group_ && group_->map().Find(rank) != nullptr);
}

int Readiness::CountRoutable(int without) const {
  int count = 0;
  for (const auto& [rank, member] : members_.all()) {
    count += rank != without && Routable(rank) ? 1 : 0;
  }
  return count;
}

std::string Readiness::State(int rank) const {
  const Member& member = members_.at(rank);
  if (!member.refusal.empty()) return "refused";
  if (drains_.draining(rank)) return "draining";
  if (member.identity.attention() && !member.ready) return "loading";
  if (!member.exchanges_messages()) return "ready";
  CHECK(group_.has_value()) << "rank " << rank << " exchanges messages, and has no group";
  return group_->map().Find(rank) != nullptr && !group_->hosts().loading(rank) ? "ready"
                                                                               : "loading";
}

bool Readiness::OtherRankServes() const {
  return std::ranges::any_of(members_.all(), [this](const auto& entry) {
    return !entry.second.exchanges_messages() && Routable(entry.first);
  });
}

std::string Readiness::UnhostedText() const {
  const ExpertHosts& hosts = group_->hosts();
  return absl::StrFormat("%d of %d experts unhosted; ranks %s load them", hosts.unhosted_count(),
                         hosts.shape().expert_total(), absl::StrJoin(hosts.loading_ranks(), ", "));
}

absl::Status Readiness::Ready() const {
  RETURN_IF_ERROR(ReadySoon());
  // Requests are still taken while experts are being loaded (ReadySoon), but a load balancer should
  // prefer other servers meanwhile.
  if (OtherRankServes() || !group_ || group_->hosts().unhosted_count() == 0) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(UnhostedText());
}

absl::Status Readiness::ReadySoon() const {
  if (OtherRankServes()) return absl::OkStatus();
  if (!started() || CountRoutable(-1) == 0) return absl::UnavailableError(WaitingFor());
  const ExpertHosts& hosts = group_->hosts();
  // A loss is planned for within a period; a request that comes in between need not fail.
  const bool planned = group_->plan_due() && hosts.Shortfall() <= 0;
  if (hosts.unhosted_count() == 0 || !hosts.loading_ranks().empty() || planned) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(absl::StrFormat(
      "%d of %d experts unhosted, and %d slots are missing", hosts.unhosted_count(),
      hosts.shape().expert_total(), std::max<int64_t>(0, hosts.Shortfall())));
}

std::string Readiness::WaitingFor() const {
  // The most general reason comes first: what follows depends on it.
  if (members_.count() < expect_ranks_ && !started()) {
    return absl::StrCat("waiting for ranks: ", members_.count(), " of ", expect_ranks_);
  }
  if (members_.count() == 0) return "no worker";
  // Ranks that do not need the group say best what is missing: they could serve without it.
  const bool group_only = std::ranges::all_of(
      members_.all(), [](const auto& entry) { return entry.second.exchanges_messages(); });
  if (group_only && group_) {
    if (std::string missing = MissingFromGroup(); !missing.empty()) return missing;
  }
  std::vector<std::string> reasons;
  for (const auto& [rank, member] : members_.all()) {
    if (!member.identity.attention()) continue;
    const std::string why = WaitOf(rank, member);
    reasons.push_back(members_.count() == 1 ? why : absl::StrCat("rank ", rank, ": ", why));
  }
  return absl::StrJoin(reasons, "; ");
}

std::string Readiness::MissingFromGroup() const {
  const auto none_has = [&](bool (v1::WorkerIdentity::*role)() const) {
    return std::ranges::none_of(members_.all(), [&](const auto& entry) {
      return entry.second.refusal.empty() && (entry.second.identity.*role)();
    });
  };
  if (none_has(&v1::WorkerIdentity::attention)) return "no rank has the role attention";
  if (none_has(&v1::WorkerIdentity::experts)) return "no rank has the role experts";
  const ExpertHosts& hosts = group_->hosts();
  if (const int64_t missing = hosts.Shortfall(); missing > 0) {
    return absl::StrFormat("%d experts need a slot each, and %d slots are missing",
                           hosts.shape().expert_total(), missing);
  }
  // Everything fits, and more ranks may be on their way.
  if (!started()) return "waiting for more ranks to join";
  return group_->map().version.number == 0 ? UnhostedText() : "";
}

std::string Readiness::WaitOf(int rank, const Member& member) const {
  const v1::WorkerIdentity& identity = member.identity;
  if (identity.epoch_ranks() > 0 && identity.epoch() == 0) {
    return absl::StrCat("waits for an epoch of ", identity.epoch_ranks(), " ranks");
  }
  if (const std::string avoided = verdicts_.Avoided(rank); !avoided.empty()) return avoided;
  const std::string state = State(rank);
  // Only a rank that has said how much there is can be shown in percent.
  if (state != "loading" || member.load.total_bytes() <= 0) return state;
  const double part = static_cast<double>(member.load.loaded_bytes()) /
                      static_cast<double>(member.load.total_bytes());
  // 0.29 × 100 is a little less than 29.
  return absl::StrFormat("loading %d %%", static_cast<int>(part * 100 + 1e-6));
}

absl::Status Readiness::CheckDispensable(int rank) const {
  const Member& member = members_.at(rank);
  if (started() && member.exchanges_messages() && member.identity.experts() &&
      group_->hosts().Shortfall(rank) > 0) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "the other ranks lack %d slots for the %d experts of this model",
        group_->hosts().Shortfall(rank), group_->hosts().shape().expert_total()));
  }
  // Not even one that is loading may leave if it is the last: there may be no other to come.
  if (member.identity.attention() && member.refusal.empty() && CountRoutable(rank) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no rank but rank ", rank, " takes requests"));
  }
  return absl::OkStatus();
}

}  // namespace epic::coordinator
