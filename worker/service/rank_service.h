// RankService: a worker's place in the world, beside WorkerService, which holds its sequences: its
// number, the experts that it is to hold, the newest map, and its links to other ranks.
//
//   rank.Connect(&link);                       // and again after each redial as a new generation
//   if (!rank.OnMessage(message)) …;           // not for the rank: WorkerService's
//   while (…) { … rank.Advance(); … }          // loads an expert, if one is to be loaded
//
// A plain object, one thread.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include "base/env.h"
#include "cluster/control_link.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/exchange/message_exchange.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

class RankService {
 public:
  // All given outlives this. `slots` is null for a rank that holds no experts.
  RankService(const Clock& clock, MessageExchange& exchange, ExpertSlots* slots)
      : clock_(clock), exchange_(exchange), slots_(slots) {}

  // A link to a coordinator that has not welcomed this generation yet; null: none for now.
  void Connect(cluster::ControlLink* link);
  // False: the message is not of the rank's kind.
  bool OnMessage(const v1::ControlMessage& message);
  // For ExchangeHandlers. A link is reported as up only if it was reported as down before.
  void OnLinkDown(const cluster::RankEntry& rank, const absl::Status& why);
  void OnLinkUp(const cluster::RankEntry& rank);

  bool loading() const { return slots_ != nullptr && slots_->loading(); }
  // Loads one expert of an order, and tells the outcome when the order has ended.
  void Advance();
  // The bytes of the weights apart from experts, for the progress that the coordinator is told.
  void set_base_bytes(int64_t bytes) { base_bytes_ = bytes; }

  // Adds what is known here: the wait for another rank, or the experts being loaded, as the
  // activity; and the gauges of the exchange.
  void FillReport(v1::RankReport& report) const;

 private:
  void PlaceExperts(const v1::PlaceExperts& order);
  void Tell(const ExpertOutcome& outcome);
  void TellProgress();
  void TakeMap(const v1::PublishMap& message);
  void Send(v1::ControlMessage message);

  const Clock& clock_;
  MessageExchange& exchange_;
  ExpertSlots* const slots_;
  cluster::ControlLink* link_ = nullptr;
  int64_t base_bytes_ = 0;
  std::set<std::pair<int, uint64_t>> down_;  // links told to be: rank, generation
};

}  // namespace epic::worker
