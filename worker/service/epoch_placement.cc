#include "worker/service/epoch_placement.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/service/placement_messages.h"

namespace epic::worker {
namespace {

// The map with positions in the epoch in place of the world's ranks.
absl::StatusOr<cluster::ExpertMap> MapFrom(const v1::PublishMap& message,
                                           const std::map<int, int>& positions) {
  ASSIGN_OR_RETURN(cluster::ExpertMap map, cluster::ExpertMapFrom(message));
  for (cluster::RankEntry& entry : map.ranks) {
    const auto at = positions.find(entry.rank);
    if (at == positions.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("map.ranks: rank ", entry.rank, " is not in this epoch"));
    }
    entry.rank = at->second;
  }
  std::ranges::sort(map.ranks, {}, &cluster::RankEntry::rank);
  for (auto& of_layer : map.replicas) {
    for (std::vector<int>& holders : of_layer) {
      // ExpertMapFrom has seen that every holder is one of map.ranks.
      for (int& holder : holders) holder = positions.at(holder);
      std::ranges::sort(holders);
    }
  }
  return map;
}

}  // namespace

void EpochPlacement::OnLink() {
  next_.reset();
  if (!epoch_) return;
  // Ranks that lost the link at different times must not go on with different maps.
  epoch_->maps.clear();
  epoch_->order.reset();
}

bool EpochPlacement::OnMessage(const v1::ControlMessage& message) {
  // What follows an invitation belongs to its epoch, though the one before may not be left yet.
  Epoch* const newest = next_ ? &*next_ : epoch_ ? &*epoch_ : nullptr;
  switch (message.body_case()) {
    case v1::ControlMessage::kJoinEpoch:
      // Without a map it asks for the id of a communicator alone.
      if (message.join_epoch().has_map()) TakeInvitation(message.join_epoch());
      return true;
    case v1::ControlMessage::kPlaceExperts:
      if (newest != nullptr) TakeOrder(message.place_experts(), *newest);
      return true;
    case v1::ControlMessage::kPublishMap:
      if (newest != nullptr) TakeMap(message.publish_map(), *newest);
      return true;
    default:
      return false;
  }
}

void EpochPlacement::TakeInvitation(const v1::JoinEpoch& invitation) {
  // A launched epoch goes on when its ranks have joined the world again.
  const bool goes_on = epoch_ && epoch_->number == invitation.epoch();
  // The coordinator forgot its ranks and knows them by other numbers now.
  Epoch& epoch = goes_on ? *epoch_ : next_.emplace();
  epoch.number = invitation.epoch();
  epoch.position = invitation.rank();
  epoch.maps.clear();
  epoch.order.reset();
  epoch.positions.clear();
  for (int i = 0; i < invitation.ranks_size(); ++i) epoch.positions[invitation.ranks(i)] = i;
  TakeMap(invitation.map(), epoch);
  TakeOrder(invitation.experts(), epoch);
  // What the epoch begins with has changed while the slots loaded it.
  if (goes_on && !started_ && epoch.order) {
    slots_.Order(std::exchange(epoch.order, std::nullopt)->order);
  }
}

void EpochPlacement::TakeMap(const v1::PublishMap& message, Epoch& epoch) {
  absl::StatusOr<cluster::ExpertMap> map = MapFrom(message, epoch.positions);
  if (!map.ok()) {
    epoch.status = map.status();
  } else {
    epoch.maps.push_back(std::make_shared<const cluster::ExpertMap>(*std::move(map)));
  }
}

void EpochPlacement::TakeOrder(const v1::PlaceExperts& message, Epoch& epoch) {
  absl::StatusOr<ExpertOrder> order = OrderFrom(message);
  if (!order.ok()) {
    epoch.status = order.status();
    return;
  }
  // An order lists all that is wanted, so the newest takes the place of one that waits.
  const uint64_t newest = epoch.maps.empty() ? epoch.given_map : epoch.maps.back()->version.number;
  epoch.order = WaitingOrder{.order = *std::move(order), .after_map = newest};
}

void EpochPlacement::Begin() {
  CHECK(next_ && !epoch_);
  epoch_ = std::exchange(next_, std::nullopt);
  started_ = false;
  // Nothing steps yet, so nobody misses what the order drops.
  if (epoch_->order) slots_.Order(std::exchange(epoch_->order, std::nullopt)->order);
}

absl::Status EpochPlacement::Start(CollectiveExchange& exchange) {
  CHECK(epoch_ && !started_);
  CHECK(may_start());
  started_ = true;
  return Advance(exchange);
}

absl::Status EpochPlacement::Advance(CollectiveExchange& exchange) {
  CHECK(epoch_ && started_);
  RETURN_IF_ERROR(epoch_->status);
  for (; !epoch_->maps.empty(); epoch_->maps.pop_front()) {
    // Other ranks would send rows here that could not be computed.
    RETURN_IF_ERROR(CheckHeld(*epoch_->maps.front()));
    const uint64_t number = epoch_->maps.front()->version.number;
    if (number <= epoch_->given_map) {
      return absl::InvalidArgumentError(
          absl::StrCat("map ", number, " follows map ", epoch_->given_map));
    }
    epoch_->given_map = number;
    exchange.SetMap(epoch_->maps.front());
  }
  if (epoch_->order && exchange.map_number() >= epoch_->order->after_map) {
    slots_.Order(std::exchange(epoch_->order, std::nullopt)->order);
  }
  return absl::OkStatus();
}

uint64_t EpochPlacement::newest_map() const { return epoch_ ? epoch_->given_map : 0; }

absl::Status EpochPlacement::CheckHeld(const cluster::ExpertMap& map) const {
  for (int layer = 0; layer < static_cast<int>(map.replicas.size()); ++layer) {
    const auto& of_layer = map.replicas[layer];
    for (int expert = 0; expert < static_cast<int>(of_layer.size()); ++expert) {
      if (!std::ranges::binary_search(of_layer[expert], epoch_->position)) continue;
      if (slots_.Holds(layer, expert)) continue;
      return absl::AbortedError(absl::StrCat("map ", map.version.number, " gives expert ", expert,
                                             " of layer ", layer,
                                             " to this rank, which does not hold it"));
    }
  }
  return absl::OkStatus();
}

}  // namespace epic::worker
