#include "tests/sim/control.h"

#include <algorithm>
#include <string>
#include <utility>

namespace epic::sim {

namespace {

// A closed socket is no death until nobody has dialled again for so long.
constexpr absl::Duration kRedial = absl::Milliseconds(300);

}  // namespace

class ControlPair::End : public cluster::ControlLink {
 public:
  End(std::shared_ptr<ControlPair> pair, Side side) : pair_(std::move(pair)), side_(side) {}
  ~End() override { pair_->Close(side_); }
  void Send(v1::ControlMessage message) override { pair_->Carry(side_, std::move(message)); }

 private:
  const std::shared_ptr<ControlPair> pair_;
  const Side side_;
};

std::unique_ptr<cluster::ControlLink> ControlPair::NewEnd(Side side) {
  return std::make_unique<End>(shared_from_this(), side);
}

absl::Time ControlPair::Arrival(Side to) {
  absl::Time& last = last_arrival_[to];
  last = std::max(
      {last, held_until_, loop_.Now() + dice_.Between(absl::Microseconds(50), delay_max_)});
  return last;
}

void ControlPair::SetHandlers(Side side, cluster::ControlLinkHandlers handlers) {
  handlers_[side] = std::move(handlers);
  if (side == kWorker) return;
  for (const v1::ControlMessage& message : std::exchange(early_, {})) Arrive(side, message);
}

void ControlPair::Carry(Side from, v1::ControlMessage message) {
  const Side to = from == kWorker ? kCoordinator : kWorker;
  KernelOf(to).At(Arrival(to), [self = shared_from_this(), to, message = std::move(message)] {
    if (!self->alive_[to]) return;
    self->trace_.Add(message.body_case() * 2 + to);
    self->trace_.Add(message.ByteSizeLong());
    if (to == kCoordinator) return self->Arrive(to, message);
    self->worker_.Post([self, message] {
      if (self->alive_[kWorker]) self->Arrive(kWorker, message);
    });
  });
}

void ControlPair::Arrive(Side to, const v1::ControlMessage& message) {
  if (handlers_[to].on_message) {
    handlers_[to].on_message(message);
  } else {
    early_.push_back(message);
  }
}

void ControlPair::Close(Side side) {
  alive_[side] = false;
  const Side other = side == kWorker ? kCoordinator : kWorker;
  const absl::Duration unnoticed = side == kWorker ? kRedial : absl::ZeroDuration();
  KernelOf(other).At(Arrival(other) + unnoticed, [self = shared_from_this(), side, other] {
    self->handlers_[side] = {};
    if (!self->alive_[other]) return;
    if (other == kCoordinator) return self->TellDown(other);
    if (self->on_worker_down_) self->on_worker_down_();
    // Ended with its process meanwhile.
    if (!self->alive_[kWorker]) return;
    self->worker_.Post([self] { self->TellDown(kWorker); });
  });
}

void ControlPair::TellDown(Side side) {
  if (!std::exchange(alive_[side], false)) return;
  const cluster::ControlLinkHandlers handlers = std::exchange(handlers_[side], {});
  if (handlers.on_down) handlers.on_down(absl::UnavailableError("the other end is gone"));
}

}  // namespace epic::sim
