#include "worker/rank/message_policy.h"

namespace epic::worker {
namespace {

// Everything that gives such a rank work wakes its loop up. The limit is for what does not: the
// time at which a rank that was told to end waits no longer.
constexpr absl::Duration kWaitMax = absl::Milliseconds(50);

}  // namespace

MessagePolicy::MessagePolicy(const ExchangeShape& shape, const ExchangeLimits& limits,
                             const Clock& clock, cluster::Transport& transport,
                             ExpertSlots& slots, bool holds_experts)
    : holds_experts_(holds_experts),
      network_(transport),
      exchange_(
          shape, limits, clock, network_, slots,
          {.on_link_up = [this](const cluster::RankEntry& rank) { service_.OnLinkUp(rank); },
           .on_link_down = [this](const cluster::RankEntry& rank,
                                  const absl::Status& why) { service_.OnLinkDown(rank, why); }}),
      service_(clock, exchange_, holds_experts ? &slots : nullptr) {}

absl::StatusOr<bool> MessagePolicy::Turn() {
  const bool served = exchange_.Serve();
  turns_served_ += served ? 1 : 0;
  const bool loading = service_.loading();
  service_.Advance();
  return served || loading;
}

absl::Duration MessagePolicy::wait_max() const { return kWaitMax; }

}  // namespace epic::worker
