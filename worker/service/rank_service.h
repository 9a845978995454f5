// RankService: a worker's place in the world, beside WorkerService, which holds its sequences: its
// number, the experts that it is to hold, the newest map, and what it reports.
//
//   rank.Connect(&link);                       // and again after each redial as a new generation
//   if (!rank.OnMessage(message)) …;           // not for the rank: WorkerService's
//   while (…) { … rank.Advance(); … }          // loads an expert, if one is to be loaded
//   loop.At(…, [&] { rank.Report(place); });   // every cluster::kReportInterval
//
// A plain object, one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "cluster/control_link.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/engine/token_model.h"
#include "worker/exchange/message_exchange.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

// When work went on: a count that rises with each turn that did something, and how long the turns
// took.
class WorkTicks {
 public:
  explicit WorkTicks(const Clock& clock) : clock_(clock) {}

  // A turn begins, with the one before it ended; `idle`: there was nothing to do before.
  void Tick(bool idle);
  uint64_t count() const { return count_; }
  // Of the last kGaps turns.
  absl::Duration GapP99() const;

 private:
  static constexpr size_t kGaps = 256;
  const Clock& clock_;
  uint64_t count_ = 0;
  absl::Time last_ = absl::InfinitePast();
  std::vector<absl::Duration> gaps_;
  size_t next_gap_ = 0;
};

class RankService {
 public:
  struct Handlers {
    // This generation is out of the world: drop all sequences and dial anew as another.
    std::function<void(const std::string& reason)> on_revoked;
  };
  // What reports tell besides.
  struct Gauges {
    StepPlace place;
    bool computing = false;
    bool loading = false;  // weights apart from experts
    int64_t doorbell_rescues = 0;
    int64_t replayed_rows = 0;
    int64_t resident_bytes = 0;
    absl::Duration asleep_with_work;  // since the start; must be zero
  };

  // All given outlives this. `slots` is null for a rank that holds no experts.
  RankService(const Clock& clock, MessageExchange& exchange, ExpertSlots* slots, Handlers handlers)
      : clock_(clock),
        exchange_(exchange),
        slots_(slots),
        handlers_(std::move(handlers)),
        ticks_(clock) {}

  // A link to a coordinator that has not welcomed this generation yet; null: none for now.
  void Connect(cluster::ControlLink* link);
  // False: the message is not of the rank's kind.
  bool OnMessage(const v1::ControlMessage& message);
  // For ExchangeHandlers. A link that was down is said to be up when it is.
  void OnLinkDown(const cluster::RankEntry& rank, const absl::Status& why);
  void OnLinkUp(const cluster::RankEntry& rank);

  // Asks the coordinator to move what is here elsewhere; it answers with Drain.
  void AskToLeave();

  bool loading() const { return slots_ != nullptr && slots_->loading(); }
  // Loads one expert of an order, and tells its outcome at its end.
  void Advance();
  // Of the weights apart from experts, for the coordinator's progress.
  void set_base_bytes(int64_t bytes) { base_bytes_ = bytes; }

  WorkTicks& ticks() { return ticks_; }
  // Sends a RankReport.
  void Report(const Gauges& gauges);

 private:
  void PlaceExperts(const v1::PlaceExperts& order);
  void Tell(const ExpertOutcome& outcome);
  void TellProgress();
  void TakeMap(const v1::PublishMap& message);
  void Send(v1::ControlMessage message);

  const Clock& clock_;
  MessageExchange& exchange_;
  ExpertSlots* const slots_;
  const Handlers handlers_;
  WorkTicks ticks_;
  cluster::ControlLink* link_ = nullptr;
  int64_t base_bytes_ = 0;
  std::set<std::pair<int, uint64_t>> down_;  // links told to be: rank, generation
};

}  // namespace epic::worker
