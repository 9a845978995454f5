#include "coordinator/world/verdicts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutant.h"

namespace epic::coordinator {
namespace {

bool Touches(const std::pair<int, int>& pair, int rank) {
  return pair.first == rank || pair.second == rank;
}

}  // namespace

void Verdicts::Freeze(bool frozen) {
  frozen_ = frozen;
  // In the next freeze a rank that still hangs is named again.
  suspected_.clear();
}

void Verdicts::Disregard(int rank) {
  liveness_.Forget(rank);
  links_.Forget(rank);
}

void Verdicts::Forget(int rank) {
  Disregard(rank);
  suspected_.erase(rank);
  avoided_.erase(rank);
  std::erase_if(broken_links_, [rank](const auto& pair) { return Touches(pair, rank); });
}

std::optional<Ruling> Verdicts::JudgeProgress(absl::Time now) {
  std::optional<Suspicion> suspicion = liveness_.Judge(now);
  if (!suspicion) return std::nullopt;
  // A verdict may be wrong, so it is no death that a request can be blamed for.
  Ruling ruling{.rank = suspicion->rank, .evidence = std::move(suspicion->evidence)};
  if (!frozen_ || EPIC_MUTANT("freezes_revoke")) return ruling;
  // The judge looks 20 times a second; operators want to read it once.
  if (!suspected_.insert(ruling.rank).second) return std::nullopt;
  ruling.kind = Ruling::Kind::kSuspect;
  return ruling;
}

std::optional<Ruling> Verdicts::JudgeAccusations(absl::Time now) {
  // Accusations are kept: they are judged when the freeze ends.
  if (frozen_) return std::nullopt;
  std::optional<LinkVerdict> verdict = links_.Judge(now);
  if (!verdict) return std::nullopt;
  return Ruling{.rank = verdict->rank,
                .evidence = std::move(verdict->evidence),
                .unexplained = verdict->witnessed};
}

std::vector<Ruling> Verdicts::JudgeBrokenLinks(absl::Time now, const LinkFacts& facts) {
  std::vector<Ruling> rulings;
  const std::vector<BrokenPair> pairs = links_.Pairs(now);
  NoteHealed(pairs, rulings);
  for (const BrokenPair& pair : pairs) {
    if (JudgePair(pair, now, facts, rulings)) break;
  }
  return rulings;
}

void Verdicts::NoteHealed(const std::vector<BrokenPair>& pairs, std::vector<Ruling>& rulings) {
  std::set<std::pair<int, int>> broken;
  for (const BrokenPair& pair : pairs) broken.insert({pair.low, pair.high});
  std::erase_if(avoided_, [&](const auto& entry) {
    return std::ranges::none_of(broken,
                                [&](const auto& pair) { return Touches(pair, entry.first); });
  });
  for (const auto& [low, high] : broken_links_) {
    if (broken.contains({low, high})) continue;
    rulings.push_back({.kind = Ruling::Kind::kLinkHealed, .rank = low, .other = high});
  }
  std::erase_if(broken_links_, [&](const auto& pair) { return !broken.contains(pair); });
}

bool Verdicts::JudgePair(const BrokenPair& pair, absl::Time now, const LinkFacts& facts,
                         std::vector<Ruling>& rulings) {
  CHECK_LT(pair.low, pair.high);
  // A rank that was revoked a moment ago may still be named.
  if (!facts.IsMember(pair.low) || !facts.IsMember(pair.high)) return false;
  if (broken_links_.insert({pair.low, pair.high}).second) {
    rulings.push_back({.kind = Ruling::Kind::kLinkBroken,
                       .rank = pair.low,
                       .other = pair.high,
                       .evidence = pair.evidence});
  }
  // An end that computes sequences goes on if others hold what the other end holds. Else its
  // sequences move: a revocation would also cost what the revoked rank holds for all others.
  bool nowhere_to_go = false;
  for (const auto& [rank, other] : {std::pair{pair.low, pair.high}, {pair.high, pair.low}}) {
    if (!facts.Needs(rank, other)) continue;
    if (!facts.HasElsewhere(rank)) {
      nowhere_to_go = true;
      continue;
    }
    const std::string why = absl::StrCat("it cannot reach rank ", other);
    if (!avoided_.try_emplace(rank, why).second) continue;
    rulings.push_back({.kind = Ruling::Kind::kMoveSequences, .rank = rank, .other = other});
  }
  if (!nowhere_to_go || frozen_ || !links_.MayRevoke(now)) return false;
  links_.CountRevocation(now);
  // The younger end goes: the link may never have worked, and the older one has served longer.
  const bool high_is_younger = facts.JoinedAt(pair.high) >= facts.JoinedAt(pair.low);
  rulings.push_back(
      {.rank = high_is_younger ? pair.high : pair.low, .evidence = pair.evidence});
  return true;
}

std::string Verdicts::Avoided(int rank) const {
  const auto at = avoided_.find(rank);
  return at == avoided_.end() ? "" : at->second;
}

}  // namespace epic::coordinator
