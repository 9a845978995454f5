// EpochPlacement: where the experts are among the ranks that step together, as the coordinator says
// it (coordinator/world/epochs.h): this rank's orders, and the maps of all.
//
//   if (placement.OnMessage(message)) …;         // it was about the placement
//   … until placement.invited() …
//   placement.Begin();                            // the slots load what the epoch begins with
//   … when they have:
//   RETURN_IF_ERROR(placement.Start(exchange));   // the exchange gets its first map
//   RETURN_IF_ERROR(placement.Advance(exchange)); // between steps
//   placement.Leave();                           // the epoch is over
//
// A rank must not drop an expert while another rank may send rows for it. The coordinator tells a
// map without the expert before it orders the drop, and an order waits here until the exchange uses
// that map: the vote before a step has then shown that all ranks hold it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "cluster/placement/expert_map.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/exchange/collective_exchange.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

// One thread, the rank's loop.
class EpochPlacement {
 public:
  // `slots` outlives this.
  explicit EpochPlacement(ExpertSlots& slots) : slots_(slots) {}

  // A new link to the coordinator, or none: what the old one said and was not handed on is void.
  void OnLink();
  // False: the message is not about placement.
  bool OnMessage(const v1::ControlMessage& message);

  // Whether the rank is invited to an epoch that it has not begun.
  bool invited() const { return next_.has_value(); }
  // Begins the epoch that the rank is invited to.
  void Begin();
  // Whether Start has a map to give. A launched epoch that joins the world again before its start
  // has none until a new invitation brings one, with an order for the slots.
  bool may_start() const { return epoch_ && (!epoch_->maps.empty() || !epoch_->status.ok()); }
  // The slots have loaded what they were ordered. Errors are as those of Advance.
  absl::Status Start(CollectiveExchange& exchange);
  // Hands on maps and orders that have come since. InvalidArgument for a message that makes no
  // sense; Aborted for a map that gives this rank an expert that it does not hold.
  absl::Status Advance(CollectiveExchange& exchange);
  void Leave() { epoch_.reset(); }

  // The number of the newest map that the exchange was given in this epoch; 0: none.
  uint64_t newest_map() const;

 private:
  struct WaitingOrder {
    ExpertOrder order;
    uint64_t after_map = 0;  // the map that no longer names what the order drops
  };
  // The facts about an epoch that have not been handed on yet.
  struct Epoch {
    uint64_t number = 0;
    int position = 0;              // this rank's
    std::map<int, int> positions;  // by the world's rank
    std::deque<std::shared_ptr<const cluster::ExpertMap>> maps;  // ascending
    std::optional<WaitingOrder> order;
    uint64_t given_map = 0;  // the newest that the exchange has
    absl::Status status;     // of what messages said
  };

  void TakeInvitation(const v1::JoinEpoch& invitation);
  static void TakeOrder(const v1::PlaceExperts& message, Epoch& epoch);
  static void TakeMap(const v1::PublishMap& message, Epoch& epoch);
  absl::Status CheckHeld(const cluster::ExpertMap& map) const;

  ExpertSlots& slots_;
  std::optional<Epoch> epoch_;  // begun
  bool started_ = false;        // its exchange has a map
  std::optional<Epoch> next_;   // the rank is invited to it
};

}  // namespace epic::worker
