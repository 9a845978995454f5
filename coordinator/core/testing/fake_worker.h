// FakeWorker: a worker as the core sees it, for tests: it answers over a loopback link, and makes
// tokens when the test says so.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/loopback_control_link.h"
#include "cluster/placement/expert_map.h"
#include "coordinator/core/core.h"

namespace epic::coordinator {

// The token that every worker generates: a function of prompt, seed, choice and position alone.
inline int32_t TokenAt(const v1::StartSequence& start, int position) {
  uint64_t hash = start.sampling().seed() * 31 + start.choice() + 1;
  for (const int32_t token : start.prompt()) hash = hash * 1000003 + token;
  SeededRandom random(hash + position);
  return static_cast<int32_t>(random.Next() % 1000);
}

// One life of a worker: makes a token for each of its sequences in each step.
class FakeWorker {
 public:
  FakeWorker(SimLoop& loop, Core& core, uint64_t generation,
             const v1::WorkerIdentity* identity = nullptr) {
    // The core's end needs the pair's, and the pair the core's handlers.
    auto at_core = std::make_shared<cluster::ControlLinkHandlers>();
    auto links = cluster::NewLoopbackPair(
        loop,
        {.on_message = [at_core](const auto& message) { at_core->on_message(message); },
         .on_down = [at_core](absl::Status status) { at_core->on_down(std::move(status)); }},
        {.on_message = [this](const auto& message) { OnMessage(message); }, .on_down = nullptr});
    v1::ControlHello hello;
    hello.set_generation(generation);
    if (identity != nullptr) *hello.mutable_worker() = *identity;
    *at_core = *core.AddWorker(hello, std::move(links.first));
    link_ = std::move(links.second);
  }

  void SendReady(const std::string& profile = "fma") {
    v1::ControlMessage message;
    message.mutable_ready()->set_profile(profile);
    message.mutable_ready()->set_checkpoint("c");
    message.mutable_ready()->set_max_model_len(1000);
    link_->Send(message);
  }
  void SendLoading(int percent) {
    v1::ControlMessage message;
    message.mutable_load_progress()->set_loaded_bytes(percent);
    message.mutable_load_progress()->set_total_bytes(100);
    link_->Send(message);
  }
  // Fails everything that it holds.
  void Fail(absl::StatusCode code) {
    for (const auto& [id, held] : held_) {
      v1::ControlMessage message;
      message.mutable_sequence_failed()->set_sequence(id);
      message.mutable_sequence_failed()->set_attempt(held.start.attempt());
      message.mutable_sequence_failed()->set_code(static_cast<int>(code));
      message.mutable_sequence_failed()->set_message("broken");
      link_->Send(message);
    }
    held_.clear();
  }

  // A step that made no token: prompts are being computed.
  void ReportBatch(int running, int waiting) {
    v1::ControlMessage message;
    message.mutable_step()->set_running(running);
    message.mutable_step()->set_waiting(waiting);
    link_->Send(message);
  }

  void ReportIdle() {
    v1::ControlMessage message;
    message.mutable_rank_report();
    link_->Send(message);
  }

  // Returns whether there was work.
  bool Step() {
    if (held_.empty()) return false;
    v1::ControlMessage message;
    for (auto it = held_.begin(); it != held_.end();) {
      Held& held = it->second;
      v1::SequenceToken& token = *message.mutable_step()->add_tokens();
      token.set_sequence(it->first);
      token.set_attempt(held.start.attempt());
      token.set_position(held.position);
      if (held.position == 0) {
        v1::PromptScored& prompt = *message.mutable_step()->add_prompts();
        prompt.set_sequence(it->first);
        prompt.set_attempt(held.start.attempt());
        prompt.set_cached_tokens(cached_tokens);
      }
      token.set_token(TokenAt(held.start, held.position));
      if (++held.position == held.start.max_tokens()) token.set_finish_reason(finish_reason);
      it = held.position == held.start.max_tokens() ? held_.erase(it) : std::next(it);
    }
    link_->Send(message);
    return true;
  }

  // Whether it computes a sequence whose prompt has the token.
  bool Computes(int32_t token) const {
    return std::ranges::any_of(held_, [token](const auto& entry) {
      return std::ranges::count(entry.second.start.prompt(), token) > 0;
    });
  }
  size_t held_count() const { return held_.size(); }
  std::vector<int32_t> started;  // the last prompt token of each sequence, in order of arrival
  int ends = 0;
  int rank = -1;
  uint64_t map_number = 0;
  int unhosted = 0;  // in its map
  v1::FinishReason finish_reason = v1::FINISH_REASON_LENGTH;
  int cached_tokens = 0;  // of each prompt

 private:
  struct Held {
    v1::StartSequence start;
    int position = 0;
  };
  void OnMessage(const v1::ControlMessage& message) {
    if (message.has_start()) {
      const v1::StartSequence& start = message.start();
      for (int i = 0; i < start.forced_size(); ++i) ASSERT_EQ(start.forced(i), TokenAt(start, i));
      held_[start.sequence()] = {start, start.forced_size()};
      started.push_back(*start.prompt().rbegin());
    } else if (message.has_end()) {
      ++ends;
      held_.erase(message.end().sequence());
    } else if (message.has_welcome()) {
      rank = message.welcome().rank();
    } else if (message.has_place_experts()) {
      v1::ControlMessage answer;
      answer.mutable_experts_ready()->set_order(message.place_experts().order());
      link_->Send(answer);
    } else if (message.has_publish_map()) {
      map_number = message.publish_map().number();
      unhosted = cluster::ExpertMapFrom(message.publish_map())->unhosted_count();
    }
  }

  std::map<uint64_t, Held> held_;
  std::unique_ptr<cluster::ControlLink> link_;
};

}  // namespace epic::coordinator
