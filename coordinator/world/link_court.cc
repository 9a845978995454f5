#include "coordinator/world/link_court.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace epic::coordinator {

void LinkCourt::Accuse(int accuser, int accused, std::string evidence, absl::Time now) {
  accusations_.try_emplace({accuser, accused}, Accusation{std::move(evidence), now});
}

void LinkCourt::Forget(int rank) {
  std::erase_if(accusations_, [rank](const auto& entry) {
    return entry.first.first == rank || entry.first.second == rank;
  });
}

bool LinkCourt::Accused(int rank, int apart_from) const {
  return std::ranges::any_of(accusations_, [&](const auto& entry) {
    return entry.first.second == rank && entry.first.first != apart_from;
  });
}

std::set<int> LinkCourt::Ranks() const {
  std::set<int> ranks;
  for (const auto& [pair, accusation] : accusations_) ranks.insert({pair.first, pair.second});
  return ranks;
}

std::optional<LinkVerdict> LinkCourt::Judge(absl::Time now) {
  if (!MayRevoke(now)) return std::nullopt;
  for (const int rank : Ranks()) {
    std::vector<int> witnesses;
    std::string evidence;
    for (const auto& [pair, accusation] : accusations_) {
      if (pair.second != rank || Accused(pair.first, rank)) continue;
      witnesses.push_back(pair.first);
      evidence = accusation.evidence;
    }
    if (witnesses.size() < 2) continue;
    CountRevocation(now);
    return LinkVerdict{
        rank,
        absl::StrCat("ranks ", absl::StrJoin(witnesses, ", "), " cannot reach it: ", evidence),
        /*witnessed=*/true};
  }
  // The rank that accuses most; among equals the youngest.
  std::optional<std::pair<size_t, int>> worst;
  std::vector<int> accused;
  for (const int rank : Ranks()) {
    std::vector<int> peers;
    for (const auto& [pair, accusation] : accusations_) {
      if (pair.first == rank && now - accusation.since >= settle_) peers.push_back(pair.second);
    }
    if (peers.size() < 2 || (worst && std::pair{peers.size(), rank} < *worst)) continue;
    worst = {peers.size(), rank};
    accused = peers;
  }
  if (!worst) return std::nullopt;
  CountRevocation(now);
  return LinkVerdict{worst->second,
                     absl::StrCat("it alone cannot reach ranks ", absl::StrJoin(accused, ", "))};
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
