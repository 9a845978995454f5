#include "coordinator/world/liveness.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/mutant.h"

namespace epic::coordinator {
namespace {

// A report is a stranger's number.
absl::Duration Seconds(double seconds, double max) {
  return absl::Seconds(std::isfinite(seconds) ? std::clamp(seconds, 0.0, max) : 0.0);
}

std::string Milliseconds(absl::Duration duration) {
  return absl::StrCat(absl::ToInt64Milliseconds(duration), " ms");
}

constexpr double kGapSecondsMax = 1;
constexpr double kWaitSecondsMax = 1e6;

}  // namespace

void Liveness::Expect(int rank, absl::Time now) {
  Watched& watched = watched_[rank];
  watched.tick_at = watched.reported_at = now;
  watched.report.set_activity(v1::RankReport::LOADING);  // until it says
}

void Liveness::Report(int rank, const v1::RankReport& report, absl::Time now) {
  const auto [at, first] = watched_.try_emplace(rank);
  Watched& watched = at->second;
  // An idle rank owes no ticks, and a waiting one cannot make any.
  const bool works = report.activity() == v1::RankReport::COMPUTING ||
                     report.activity() == v1::RankReport::LOADING;
  // Loaded bytes are progress too: a long load makes no ticks between experts.
  if (first || !works || report.ticks() != watched.report.ticks() ||
      report.loaded_bytes() != watched.report.loaded_bytes()) {
    watched.tick_at = now;
  }
  watched.report = report;
  watched.reported_at = now;
}

absl::Duration Liveness::TickLimit(const Watched& watched) const {
  // A rank on a slow machine is measured by its own habit, not by that of others.
  const absl::Duration gap = Seconds(watched.report.tick_gap_p99_seconds(), kGapSecondsMax);
  return std::max(limits_.tick_min, limits_.tick_gaps * gap);
}

bool Liveness::Waits(const Watched& watched, absl::Time now) const {
  return watched.report.activity() == v1::RankReport::WAITING &&
         // An old report of waiting proves nothing: the rank may have stopped since.
         now - watched.reported_at <= TickLimit(watched);
}

std::optional<int> Liveness::EndOfWaits(int rank, absl::Time now) const {
  std::set<int> seen = {rank};
  while (true) {
    const auto at = watched_.find(rank);
    if (at == watched_.end()) return std::nullopt;
    if (!Waits(at->second, now)) return rank;
    rank = at->second.report.waits_for();
    // A circle of waits is not the fault of one rank; silence or a link will tell.
    if (!seen.insert(rank).second) return std::nullopt;
  }
}

std::optional<Suspicion> Liveness::Judge(absl::Time now) {
  if (EPIC_MUTANT("hangs_are_forgiven")) return std::nullopt;
  // A coordinator that was stopped finds everybody silent, itself being the cause.
  const bool lagged = now - judged_at_ > limits_.period + limits_.lag_max;
  judged_at_ = now;
  if (lagged && !EPIC_MUTANT("stalls_look_like_silence")) {
    for (auto& [rank, watched] : watched_) watched.tick_at = watched.reported_at = now;
    return std::nullopt;
  }
  for (const auto& [waiter, of_waiter] : watched_) {
    const std::optional<int> end = EndOfWaits(waiter, now);
    if (!end || *end == waiter) continue;
    const Watched& watched = watched_.at(*end);
    // Nobody is suspect for being slow alone: somebody must wait for the rank.
    const absl::Duration still = now - watched.tick_at;
    if (still <= TickLimit(watched)) continue;
    return Suspicion{*end,
                     absl::StrCat("no tick for ", Milliseconds(still), " (limit ",
                                  Milliseconds(TickLimit(watched)), ") while rank ", waiter, " is ",
                                  Activity(waiter, now), "; it said last: ", Activity(*end, now))};
  }
  // Silence is judged last: the end of a wait names the culprit with more certainty.
  for (const auto& [rank, watched] : watched_) {
    const absl::Duration limit = watched.report.activity() == v1::RankReport::LOADING
                                     ? limits_.loading_silence
                                     : limits_.silence;
    const absl::Duration silent = now - watched.reported_at;
    if (silent <= limit) continue;
    return Suspicion{
        rank, absl::StrCat("no report for ", Milliseconds(silent), " (limit ", Milliseconds(limit),
                           "); it said last: ", Activity(rank, now))};
  }
  return std::nullopt;
}

std::string Liveness::Activity(int rank, absl::Time now) const {
  const auto at = watched_.find(rank);
  if (at == watched_.end()) return "";
  const v1::RankReport& report = at->second.report;
  switch (report.activity()) {
    case v1::RankReport::COMPUTING:
      return absl::StrFormat("computing %s of layer %d", report.stage(), report.layer());
    case v1::RankReport::WAITING:
      return absl::StrFormat("waiting for rank %d at layer %d since %.3f s", report.waits_for(),
                             report.layer(), absl::ToDoubleSeconds(WaitAge(rank, now)));
    case v1::RankReport::LOADING:
      return absl::StrFormat("loading, %d MiB so far", report.loaded_bytes() >> 20);
    default:
      return "idle";
  }
}

absl::Duration Liveness::ReportAge(int rank, absl::Time now) const {
  const auto at = watched_.find(rank);
  return at == watched_.end() ? absl::ZeroDuration() : now - at->second.reported_at;
}

absl::Duration Liveness::WaitAge(int rank, absl::Time now) const {
  const auto at = watched_.find(rank);
  if (at == watched_.end() || at->second.report.activity() != v1::RankReport::WAITING) {
    return absl::ZeroDuration();
  }
  return Seconds(at->second.report.waiting_seconds(), kWaitSecondsMax) + now -
         at->second.reported_at;
}

}  // namespace epic::coordinator
