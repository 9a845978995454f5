// FakeCoordinator: what a worker dials in tests. It keeps what each link has said and says what the
// test wants.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cluster/control_link.h"
#include "worker/connection.h"

namespace epic::worker {

class FakeCoordinator {
 public:
  struct Link {
    v1::ControlHello hello;
    cluster::ControlLinkHandlers handlers;
    std::vector<v1::ControlMessage> messages;  // from the worker
    bool open = true;                          // at the worker's end
  };

  ControlDialer dialer() {
    return [this](v1::ControlHello hello, cluster::ControlLinkHandlers handlers) {
      links_.push_back(std::make_shared<Link>());
      links_.back()->hello = std::move(hello);
      links_.back()->handlers = std::move(handlers);
      return std::make_unique<End>(links_.back());
    };
  }

  int dials() const { return static_cast<int>(links_.size()); }
  // The newest one.
  Link& link() const {
    CHECK(!links_.empty());
    return *links_.back();
  }
  void Say(const v1::ControlMessage& message) const {
    CHECK(link().open);
    link().handlers.on_message(message);
  }
  void Welcome(int rank) const {
    v1::ControlMessage message;
    message.mutable_welcome()->set_rank(rank);
    Say(message);
  }
  void Drain() const {
    v1::ControlMessage message;
    message.mutable_drain();
    Say(message);
  }
  void Revoke() const {
    v1::ControlMessage message;
    message.mutable_revoked()->set_reason("a test wants it");
    Say(message);
  }
  // A request for `max_tokens` tokens, drawn greedily.
  void Start(uint64_t sequence, int max_tokens) const {
    v1::ControlMessage message;
    v1::StartSequence& start = *message.mutable_start();
    start.set_sequence(sequence);
    start.set_attempt(1);
    start.add_prompt(1);
    start.set_max_tokens(max_tokens);
    start.set_logprobs(-1);
    start.mutable_sampling()->set_top_p(1);
    start.mutable_sampling()->set_repetition_penalty(1);
    Say(message);
  }
  void Close(absl::Status why) const { link().handlers.on_down(std::move(why)); }

  // How many messages of the newest link are of that kind.
  int Count(v1::ControlMessage::BodyCase kind) const {
    int count = 0;
    for (const v1::ControlMessage& message : link().messages) {
      count += message.body_case() == kind ? 1 : 0;
    }
    return count;
  }
  const v1::RankReport& LastReport() const {
    for (size_t i = link().messages.size(); i > 0; --i) {
      if (link().messages[i - 1].has_rank_report()) return link().messages[i - 1].rank_report();
    }
    CHECK(false) << "no report";
    return v1::RankReport::default_instance();
  }

 private:
  class End : public cluster::ControlLink {
   public:
    explicit End(std::shared_ptr<Link> link) : link_(std::move(link)) {}
    ~End() override { link_->open = false; }
    void Send(v1::ControlMessage message) override {
      link_->messages.push_back(std::move(message));
    }

   private:
    const std::shared_ptr<Link> link_;
  };

  std::vector<std::shared_ptr<Link>> links_;
};

}  // namespace epic::worker
