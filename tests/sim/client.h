// Client: one request, from whoever asks until its end, and the judge of what it gets: the tokens
// of one rank alone, each once, and one end that has a reason.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/sim_loop.h"
#include "coordinator/core/core.h"
#include "tests/sim/scenario.h"
#include "tests/sim/trace.h"

namespace epic::sim {

struct ClientHandlers {
  std::function<void(const std::string&)> violation;
  // Whether ranks have died so that a request may seem to have killed them.
  std::function<bool()> excused;
};

class Client {
 public:
  // `stalled`: for how long the coordinator stands still, over all: so much later a deadline may be
  // kept.
  Client(SimLoop& loop, coordinator::Core& core, Trace& trace, int number, RequestPlan plan,
         int expert_count, absl::Duration stalled, ClientHandlers handlers);

  const RequestPlan& plan() const { return plan_; }
  // At plan().at; again until it is accepted, or its time is over.
  void Submit();
  // It has its end, or is not there any more.
  bool over() const { return ended_ || gone_; }
  int token_count() const { return static_cast<int>(tokens_.size()); }
  // What there is to say of one that is not over.
  std::string Standing() const;

 private:
  void LoseInterest();
  void OnGrown();
  void Judge(const coordinator::JournalToken& token);
  void JudgeEnd(const coordinator::Slice& slice);
  void JudgeError(const absl::Status& error);
  void Violation(const std::string& what);

  SimLoop& loop_;
  coordinator::Core& core_;
  Trace& trace_;
  const int number_;
  const RequestPlan plan_;
  const std::vector<int32_t> expected_;
  const absl::Duration stalled_;
  const ClientHandlers handlers_;
  absl::Time deadline_ = absl::InfiniteFuture();
  std::shared_ptr<coordinator::RequestStream> stream_;
  std::vector<int32_t> tokens_;
  bool cancelled_ = false;
  bool ended_ = false;
  bool gone_ = false;
};

}  // namespace epic::sim
