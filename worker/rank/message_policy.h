// MessagePolicy: a rank's part in a world whose ranks exchange messages. Its experts and the ranks
// that it speaks to are those of the coordinator's orders and maps (RankService); rows travel by
// MessageExchange. Such a rank never moves in step with others.
#pragma once

#include <cstdint>

#include "base/env.h"
#include "cluster/transport/peer_network.h"
#include "cluster/transport/transport.h"
#include "worker/exchange/message_exchange.h"
#include "worker/experts/expert_set.h"
#include "worker/rank/exchange_policy.h"
#include "worker/service/rank_service.h"

namespace epic::worker {

class MessagePolicy : public ExchangePolicy {
 public:
  // All references outlive this. A rank without the experts role has `slots` too, empty ones, and
  // refuses orders to fill them.
  MessagePolicy(const ExchangeShape& shape, const ExchangeLimits& limits, const Clock& clock,
                cluster::Transport& transport, ExpertSlots& slots, bool holds_experts);

  MessageExchange& exchange() { return exchange_; }
  const MessageExchange& exchange() const { return exchange_; }
  // The bytes of the weights apart from experts, for the progress that the coordinator is told.
  void set_base_bytes(int64_t bytes) { service_.set_base_bytes(bytes); }
  // The number of turns that served rows.
  int64_t turns_served() const { return turns_served_; }

  void Connect(cluster::ControlLink* link) override { service_.Connect(link); }
  bool OnMessage(const v1::ControlMessage& message) override {
    return service_.OnMessage(message);
  }
  absl::StatusOr<bool> Turn() override;
  bool CanGoOn() const override { return exchange_.serving() || service_.loading(); }
  bool HasReadyTicket() const override { return exchange_.has_ready_ticket(); }
  absl::Duration wait_max() const override;
  int64_t arrivals() const override { return exchange_.counters().arrivals; }
  bool serves_others() const override { return holds_experts_ && exchange_.has_peers(); }
  bool computing() const override { return exchange_.serving(); }
  void FillReport(v1::RankReport& report) const override { service_.FillReport(report); }

 private:
  const bool holds_experts_;
  cluster::PeerNetwork network_;
  MessageExchange exchange_;
  RankService service_;
  int64_t turns_served_ = 0;
};

}  // namespace epic::worker
