// Liveness: which rank has stopped, from what ranks report every 100 ms (protocol.md §4). A plain
// object. A rank that waits for another is never suspect: waits are followed to their end.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

struct LivenessLimits {
  // No new tick for the larger of these while someone's wait points at the rank: it has stopped.
  absl::Duration tick_min = absl::Milliseconds(300);
  double tick_gaps = 8;  // times the rank's own p99 between ticks
  // No report for so long: it has stopped, waited for or not.
  absl::Duration silence = absl::Seconds(2);
  // The same while it loads: one large tensor from a slow disk.
  absl::Duration loading_silence = absl::Seconds(10);
  // Judge is called every `period`; later than that by more than `lag_max`, and the observer itself
  // had stopped: what is queued is heard first, and all time starts anew.
  absl::Duration period = absl::Milliseconds(50);
  absl::Duration lag_max = absl::Milliseconds(100);
};

struct Suspicion {
  int rank = 0;
  std::string evidence;
};

class Liveness {
 public:
  explicit Liveness(LivenessLimits limits) : limits_(limits) {}

  // A rank that will report has joined: its silence counts from now on.
  void Expect(int rank, absl::Time now);
  // Starts the watch of a rank that was not expected.
  void Report(int rank, const v1::RankReport& report, absl::Time now);
  void Forget(int rank) { watched_.erase(rank); }
  // The rank that has stopped, the one that most is known about first; none: all go on.
  std::optional<Suspicion> Judge(absl::Time now);

  // "waiting for rank 3 at layer 7 since 0.012 s"; empty for a rank that never reported.
  std::string Activity(int rank, absl::Time now) const;
  // Since its last report; zero for a rank that never reported.
  absl::Duration ReportAge(int rank, absl::Time now) const;
  // How long the rank has waited for another; zero: it does not.
  absl::Duration WaitAge(int rank, absl::Time now) const;

 private:
  struct Watched {
    v1::RankReport report;
    absl::Time reported_at;
    absl::Time tick_at;  // last sign of progress
  };

  absl::Duration TickLimit(const Watched& watched) const;
  // Says, and lately enough to be believed, that it waits.
  bool Waits(const Watched& watched, absl::Time now) const;
  // Where the waits that begin at `rank` end; none: in a circle, or nowhere that is known.
  std::optional<int> EndOfWaits(int rank, absl::Time now) const;

  const LivenessLimits limits_;
  std::map<int, Watched> watched_;
  absl::Time judged_at_ = absl::InfinitePast();
};

}  // namespace epic::coordinator
