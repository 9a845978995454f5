#include "cluster/loopback_control_link.h"

namespace epic::cluster {
namespace {

// What both ends share; an end that is gone has no handlers.
struct Shared {
  explicit Shared(Loop& l) : loop(l) {}
  Loop& loop;
  ControlLinkHandlers handlers[2];
  bool alive[2] = {true, true};
};

class LoopbackLink : public ControlLink {
 public:
  LoopbackLink(std::shared_ptr<Shared> shared, int side)
      : shared_(std::move(shared)), side_(side) {}
  ~LoopbackLink() override {
    shared_->alive[side_] = false;
    shared_->loop.Post([shared = shared_, side = side_] {
      shared->handlers[side] = {};
      const int other = 1 - side;
      if (!shared->alive[other] || !shared->handlers[other].on_down) return;
      const auto on_down = shared->handlers[other].on_down;
      shared->alive[other] = false;
      on_down(absl::UnavailableError("the other end of the control link is gone"));
    });
  }

  void Send(v1::ControlMessage message) override {
    shared_->loop.Post([shared = shared_, to = 1 - side_, message = std::move(message)] {
      if (!shared->alive[to] || !shared->handlers[to].on_message) return;
      const auto on_message = shared->handlers[to].on_message;
      on_message(message);
    });
  }

 private:
  const std::shared_ptr<Shared> shared_;
  const int side_;
};

}  // namespace

std::pair<std::unique_ptr<ControlLink>, std::unique_ptr<ControlLink>> NewLoopbackPair(
    Loop& loop, ControlLinkHandlers first, ControlLinkHandlers second) {
  auto shared = std::make_shared<Shared>(loop);
  shared->handlers[0] = std::move(first);
  shared->handlers[1] = std::move(second);
  return {std::make_unique<LoopbackLink>(shared, 0), std::make_unique<LoopbackLink>(shared, 1)};
}

}  // namespace epic::cluster
