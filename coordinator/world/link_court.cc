#include "coordinator/world/link_court.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace epic::coordinator {

void LinkCourt::Accuse(int accuser, int accused, std::string evidence, absl::Time now) {
  // The first report counts: a repeated one must not start the time anew.
  accusations_.try_emplace({accuser, accused}, Accusation{std::move(evidence), now});
  accusers_[accused].insert(accuser);
}

void LinkCourt::Withdraw(int accuser, int accused) {
  if (accusations_.erase({accuser, accused}) == 0) return;
  accusers_.at(accused).erase(accuser);
}

void LinkCourt::Forget(int rank) {
  // What a lost rank said, and what was said of it, must not convict anybody later.
  std::erase_if(accusations_, [rank](const auto& entry) {
    return entry.first.first == rank || entry.first.second == rank;
  });
  accusers_.erase(rank);
  for (auto& [accused, accusers] : accusers_) accusers.erase(rank);
  std::erase_if(accusers_, [](const auto& entry) { return entry.second.empty(); });
}

bool LinkCourt::Accused(int rank, int apart_from) const {
  const auto at = accusers_.find(rank);
  // The accused may accuse back: a broken link is seen from both ends.
  return at != accusers_.end() && at->second.size() > at->second.count(apart_from);
}

std::optional<LinkVerdict> LinkCourt::Judge(absl::Time now) {
  if (!MayRevoke(now)) return std::nullopt;
  std::optional<LinkVerdict> verdict = JudgeAccused();
  if (!verdict) verdict = JudgeAccusers(now);
  // One loss breaks many links. The next verdict waits until its effects have been reported.
  if (verdict) CountRevocation(now);
  return verdict;
}

std::optional<LinkVerdict> LinkCourt::JudgeAccused() const {
  for (const auto& [rank, accusers] : accusers_) {
    std::vector<int> witnesses;
    std::ranges::copy_if(accusers, std::back_inserter(witnesses),
                         [&, of = rank](int accuser) { return !Accused(accuser, of); });
    // A witness whom somebody else accuses may be the broken one itself.
    if (witnesses.size() < 2) continue;
    return LinkVerdict{rank,
                       absl::StrCat("ranks ", absl::StrJoin(witnesses, ", "), " cannot reach it: ",
                                    accusations_.at({witnesses.back(), rank}).evidence),
                       /*witnessed=*/true};
  }
  return std::nullopt;
}

// The rank that accuses most; among equals the youngest.
std::optional<LinkVerdict> LinkCourt::JudgeAccusers(absl::Time now) const {
  std::map<int, std::vector<int>> accused_by;
  for (const auto& [pair, accusation] : accusations_) {
    // One that lost its network accuses all others, and needs no second witness for that.
    if (now - accusation.since >= settle_) accused_by[pair.first].push_back(pair.second);
  }
  const auto worst = std::ranges::max_element(accused_by, {}, [](const auto& entry) {
    return std::pair{entry.second.size(), entry.first};
  });
  if (worst == accused_by.end() || worst->second.size() < 2) return std::nullopt;
  return LinkVerdict{worst->first, absl::StrCat("it alone cannot reach ranks ",
                                                absl::StrJoin(worst->second, ", "))};
}

std::vector<BrokenPair> LinkCourt::Pairs(absl::Time now) const {
  std::map<std::pair<int, int>, std::string> pairs;
  for (const auto& [pair, accusation] : accusations_) {
    if (now - accusation.since < settle_) continue;
    pairs.try_emplace(std::minmax(pair.first, pair.second),
                      absl::StrCat("rank ", pair.first, " cannot reach rank ", pair.second, ": ",
                                   accusation.evidence));
  }
  std::vector<BrokenPair> broken;
  for (auto& [pair, evidence] : pairs) broken.push_back({pair.first, pair.second, evidence});
  return broken;
}

}  // namespace epic::coordinator
