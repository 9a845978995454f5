#include "coordinator/core/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/sim_loop.h"
#include "cluster/loopback_control_link.h"

namespace epic::coordinator {
namespace {

using testing::HasSubstr;

// The token that every worker generates: a function of prompt, seed, choice and position alone.
int32_t TokenAt(const v1::StartSequence& start, int position) {
  uint64_t hash = start.sampling().seed() * 31 + start.sampling().choice() + 1;
  for (const int32_t token : start.prompt()) hash = hash * 1000003 + token;
  SeededRandom random(hash + position);
  return static_cast<int32_t>(random.Next() % 1000);
}

// One life of a worker: makes a token for each of its sequences in each step.
class FakeWorker {
 public:
  FakeWorker(SimLoop& loop, Core& core, uint64_t generation) {
    // The core's end needs the pair's, and the pair the core's handlers.
    auto at_core = std::make_shared<cluster::ControlLinkHandlers>();
    auto links = cluster::NewLoopbackPair(
        loop,
        {.on_message = [at_core](const auto& message) { at_core->on_message(message); },
         .on_down = [at_core](absl::Status status) { at_core->on_down(std::move(status)); }},
        {.on_message = [this](const auto& message) { OnMessage(message); }, .on_down = nullptr});
    v1::ControlHello hello;
    hello.set_generation(generation);
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
      token.set_token(TokenAt(held.start, held.position));
      if (++held.position == held.start.max_tokens()) token.set_finish_reason("length");
      it = held.position == held.start.max_tokens() ? held_.erase(it) : std::next(it);
    }
    link_->Send(message);
    return true;
  }

  size_t held_count() const { return held_.size(); }
  int ends = 0;

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
    } else if (message.has_end()) {
      ++ends;
      held_.erase(message.end().sequence());
    }
  }

  std::map<uint64_t, Held> held_;
  std::unique_ptr<cluster::ControlLink> link_;
};

class CoreTest : public testing::Test {
 protected:
  Request NewRequest(int tokens, int choices = 1) {
    Request request;
    request.id = "r" + std::to_string(next_++);
    request.prompt = {1, 2, next_};
    request.max_tokens = tokens;
    request.choices = choices;
    request.sampling.seed = 7;
    return request;
  }
  std::vector<int32_t> Expected(const Request& request, int choice) {
    v1::StartSequence start;
    for (const int32_t token : request.prompt) start.add_prompt(token);
    start.mutable_sampling()->set_seed(*request.sampling.seed);
    start.mutable_sampling()->set_choice(choice);
    std::vector<int32_t> tokens;
    for (int i = 0; i < request.max_tokens; ++i) tokens.push_back(TokenAt(start, i));
    return tokens;
  }
  static std::vector<int32_t> Tokens(const Slice& slice) {
    std::vector<int32_t> tokens;
    for (const JournalToken& token : slice.tokens) tokens.push_back(token.token);
    return tokens;
  }
  std::unique_ptr<FakeWorker> NewWorker() {
    auto worker = std::make_unique<FakeWorker>(loop_, core_, ++generation_);
    worker->SendReady();
    loop_.RunPosted();
    return worker;
  }

  SimLoop loop_;
  SeededRandom random_{1};
  Env env_{loop_, loop_, random_, RealThreads()};
  Core core_{
      env_, {.names = {"toy"}, .vocab_size = 1000, .admission = {.requests_max = 3}}, nullptr};
  uint64_t generation_ = 0;
  int next_ = 0;
};

TEST_F(CoreTest, ReadinessIsHonest) {
  EXPECT_EQ(core_.status().reason, "no worker");
  FakeWorker worker(loop_, core_, 1);
  worker.SendLoading(43);
  loop_.RunPosted();
  EXPECT_EQ(core_.status().reason, "loading 43 %");
  EXPECT_EQ(core_.Submit(NewRequest(3)).status().code(), absl::StatusCode::kUnavailable);
  worker.SendReady();
  loop_.RunPosted();
  EXPECT_TRUE(core_.status().ready);
  EXPECT_EQ(core_.model().max_model_len, 1000);
  auto stream = core_.Submit(NewRequest(3));
  loop_.Advance(absl::Seconds(11));
  EXPECT_THAT(core_.status().reason, HasSubstr("no step for 11 s"));
  worker.Step();
  loop_.RunPosted();
  EXPECT_TRUE(core_.status().ready);
  core_.StartDraining();
  EXPECT_EQ(core_.Submit(NewRequest(3)).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(CoreTest, EveryChoiceGetsItsOwnTokens) {
  auto worker = NewWorker();
  const Request request = NewRequest(5, 3);
  auto stream = *core_.Submit(request);
  int calls = 0;
  stream->SetListener([&] { ++calls; });
  loop_.RunPosted();
  while (worker->Step()) loop_.RunPosted();
  for (int choice = 0; choice < 3; ++choice) {
    EXPECT_EQ(Tokens(stream->Read(choice, 0)), Expected(request, choice));
    EXPECT_EQ(stream->Read(choice, 5).finish, FinishReason::kLength);
  }
  EXPECT_EQ(calls, 6);
  EXPECT_EQ(core_.active_requests(), 0);
}

TEST_F(CoreTest, AWorkerKilledAtAnyStepChangesNoTokenAndEndsNoStream) {
  for (int kill_at = 0; kill_at <= 12; ++kill_at) {
    for (const bool reports_arrive : {true, false}) {
      auto worker = NewWorker();
      const Request first = NewRequest(12), second = NewRequest(7, 2);
      auto a = *core_.Submit(first), b = *core_.Submit(second);
      loop_.RunPosted();
      for (int step = 0; step < kill_at; ++step) {
        worker->Step();
        if (reports_arrive || step % 3 == 0) loop_.RunPosted();
      }
      worker.reset();
      loop_.RunPosted();
      worker = NewWorker();
      while (worker->Step()) loop_.RunPosted();
      EXPECT_EQ(Tokens(a->Read(0, 0)), Expected(first, 0));
      EXPECT_EQ(Tokens(b->Read(0, 0)), Expected(second, 0));
      EXPECT_EQ(Tokens(b->Read(1, 0)), Expected(second, 1));
      EXPECT_EQ(a->Read(0, 0).finish, FinishReason::kLength);
      worker.reset();
      loop_.RunPosted();
    }
  }
  EXPECT_EQ(core_.metrics().replay_mismatches, 0);
  EXPECT_EQ(core_.active_requests(), 0);
}

TEST_F(CoreTest, AVanishedClientAndACancelEndTheRequestAtTheWorker) {
  auto worker = NewWorker();
  auto gone = *core_.Submit(NewRequest(100));
  Request named = NewRequest(100);
  const std::string id = named.id;
  auto cancelled = *core_.Submit(std::move(named));
  loop_.RunPosted();
  worker->Step();
  loop_.RunPosted();
  EXPECT_EQ(worker->held_count(), 2u);
  gone.reset();
  EXPECT_TRUE(core_.Cancel(id).ok());
  loop_.RunPosted();
  EXPECT_EQ(worker->held_count(), 0u);
  EXPECT_EQ(cancelled->Read(0, 0).finish, FinishReason::kCancelled);
  EXPECT_EQ(core_.Cancel(id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(core_.active_requests(), 0);
}

TEST_F(CoreTest, ADeadlineEndsARequestAlsoWithoutAWorker) {
  auto worker = NewWorker();
  Request request = NewRequest(100);
  request.deadline = loop_.Now() + absl::Seconds(5);
  auto stream = *core_.Submit(std::move(request));
  loop_.RunPosted();
  worker.reset();
  loop_.Advance(absl::Seconds(6));
  EXPECT_EQ(stream->Read(0, 0).finish, FinishReason::kError);
  EXPECT_EQ(stream->Read(0, 0).error.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(CoreTest, AFailureReachesItsClientAndNobodyElse) {
  auto worker = NewWorker();
  auto stream = *core_.Submit(NewRequest(5));
  loop_.RunPosted();
  worker->Fail(absl::StatusCode::kInternal);
  loop_.RunPosted();
  EXPECT_EQ(stream->Read(0, 0).finish, FinishReason::kError);
  EXPECT_EQ(stream->Read(0, 0).error.code(), absl::StatusCode::kInternal);
  const Request next = NewRequest(4);
  auto other = *core_.Submit(next);
  loop_.RunPosted();
  while (worker->Step()) loop_.RunPosted();
  EXPECT_EQ(Tokens(other->Read(0, 0)), Expected(next, 0));
}

TEST_F(CoreTest, AFullQueueRefuses) {
  auto worker = NewWorker();
  std::vector<std::shared_ptr<RequestStream>> streams;
  for (int i = 0; i < 3; ++i) streams.push_back(*core_.Submit(NewRequest(5)));
  EXPECT_EQ(core_.Submit(NewRequest(5)).status().code(), absl::StatusCode::kResourceExhausted);
  streams.clear();
  loop_.RunPosted();
  EXPECT_TRUE(core_.Submit(NewRequest(5)).ok());
}

TEST_F(CoreTest, AStopStringSealsTheJournalWhereItIsComplete) {
  auto tokenizer = *text::Tokenizer::Load("models/tiny-r1");
  Core core(env_, {.names = {"toy"}, .vocab_size = 1000}, tokenizer);
  FakeWorker worker(loop_, core, 1);
  worker.SendReady();
  loop_.RunPosted();
  Request request = NewRequest(40);
  const std::vector<int32_t> all = Expected(request, 0);
  const std::string text = tokenizer->Decode(absl::MakeConstSpan(all).first(20), true);
  request.stop = {text.substr(text.size() / 2, 4)};
  auto stream = *core.Submit(request);
  loop_.RunPosted();
  while (worker.Step()) loop_.RunPosted();
  const Slice slice = stream->Read(0, 0);
  EXPECT_EQ(slice.finish, FinishReason::kStop);
  const std::vector<int32_t> tokens = Tokens(slice);
  EXPECT_THAT(tokenizer->Decode(tokens, true), HasSubstr(request.stop[0]));
  EXPECT_LE(tokens.size(), 20u);
  EXPECT_EQ(worker.ends, 1);
  stream.reset();
  loop_.RunPosted();
}

TEST_F(CoreTest, ARankOfAnotherProfileIsRefused) {
  auto worker = NewWorker();
  FakeWorker other(loop_, core_, 99);
  other.SendReady("amx");
  loop_.RunPosted();
  EXPECT_EQ(core_.status().ranks.at(1).state, "refused");
}

}  // namespace
}  // namespace epic::coordinator
