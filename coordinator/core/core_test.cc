#include "coordinator/core/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/sim_loop.h"
#include "coordinator/core/convert.h"
#include "coordinator/core/testing/fake_worker.h"

namespace epic::coordinator {
namespace {

using testing::HasSubstr;

class CoreTest : public testing::Test {
 protected:
  Request NewRequest(int tokens, int choices = 1) {
    Request request;
    request.id = "r" + std::to_string(next_++);
    request.prompt = {1, 2, next_};
    request.max_tokens = tokens;
    request.choices = choices;
    request.sampling.set_seed(7);
    return request;
  }
  std::vector<int32_t> Expected(const Request& request, int choice) {
    const v1::StartSequence start = StartFrom(request, choice);
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
    EXPECT_EQ(stream->Read(choice, 5).finish, v1::FINISH_REASON_LENGTH);
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
      EXPECT_EQ(a->Read(0, 0).finish, v1::FINISH_REASON_LENGTH);
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
  EXPECT_EQ(cancelled->Read(0, 0).finish, v1::FINISH_REASON_CANCELLED);
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
  EXPECT_EQ(stream->Read(0, 0).finish, v1::FINISH_REASON_ERROR);
  EXPECT_EQ(stream->Read(0, 0).error.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(CoreTest, AFailureReachesItsClientAndNobodyElse) {
  auto worker = NewWorker();
  auto stream = *core_.Submit(NewRequest(5));
  loop_.RunPosted();
  worker->Fail(absl::StatusCode::kInternal);
  loop_.RunPosted();
  EXPECT_EQ(stream->Read(0, 0).finish, v1::FINISH_REASON_ERROR);
  EXPECT_EQ(stream->Read(0, 0).error.code(), absl::StatusCode::kInternal);
  const Request next = NewRequest(4);
  auto other = *core_.Submit(next);
  loop_.RunPosted();
  while (worker->Step()) loop_.RunPosted();
  EXPECT_EQ(Tokens(other->Read(0, 0)), Expected(next, 0));
}

TEST_F(CoreTest, AFinishReasonThatNoWorkerMayGiveEndsTheStreamWithAnError) {
  for (const int reason : {int{v1::FINISH_REASON_CANCELLED}, int{v1::FINISH_REASON_ERROR}, 77}) {
    auto worker = NewWorker();
    worker->finish_reason = static_cast<v1::FinishReason>(reason);
    auto stream = *core_.Submit(NewRequest(3));
    loop_.RunPosted();
    while (worker->Step()) loop_.RunPosted();
    const Slice slice = stream->Read(0, 0);
    EXPECT_EQ(slice.tokens.size(), 3u);
    EXPECT_EQ(slice.finish, v1::FINISH_REASON_ERROR);
    EXPECT_THAT(slice.error.message(), HasSubstr(std::to_string(reason)));
    EXPECT_EQ(core_.active_requests(), 0);
  }
}

TEST_F(CoreTest, OfThoseThatWaitLowerPriorityValuesGoFirst) {
  auto worker = NewWorker();
  std::vector<std::shared_ptr<RequestStream>> streams;
  for (const auto& [token, priority] : {std::pair{10, 4}, {11, -3}, {12, 0}}) {
    Request request = NewRequest(5);
    request.prompt = {token};
    request.priority = priority;
    streams.push_back(*core_.Submit(std::move(request)));
  }
  loop_.RunPosted();
  worker.reset();
  loop_.RunPosted();
  worker = NewWorker();
  EXPECT_EQ(worker->started, (std::vector<int32_t>{11, 12, 10}));
}

TEST_F(CoreTest, TellsHowManyTokensOfThePromptTheWorkerFoundInItsCache) {
  auto worker = NewWorker();
  worker->cached_tokens = 7;
  auto stream = *core_.Submit(NewRequest(2));
  loop_.RunPosted();
  EXPECT_EQ(stream->cached_tokens(), 0);
  worker->Step();
  loop_.RunPosted();
  EXPECT_EQ(stream->cached_tokens(), 7);
}

TEST_F(CoreTest, WhatWaitsIsWhatNoBatchHasNotWhatHasNoTokenYet) {
  const auto counts = [this] {
    const ClusterStatus status = core_.status();
    return std::make_pair(status.requests_running, status.requests_waiting);
  };
  auto worker = NewWorker();
  auto a = *core_.Submit(NewRequest(5)), b = *core_.Submit(NewRequest(5, 2));
  loop_.RunPosted();
  EXPECT_EQ(counts(), std::make_pair(3, 0));
  // Long prompts: steps pass, and nobody has a token.
  worker->ReportBatch(3, 0);
  loop_.RunPosted();
  EXPECT_EQ(counts(), std::make_pair(3, 0));
  worker->ReportBatch(2, 1);
  auto c = *core_.Submit(NewRequest(5));
  loop_.RunPosted();
  EXPECT_EQ(counts(), std::make_pair(2, 2)) << "a later one waits behind one that waits";
  a.reset();
  loop_.RunPosted();
  EXPECT_EQ(counts(), std::make_pair(2, 1));
  worker.reset();
  loop_.RunPosted();
  EXPECT_EQ(counts(), std::make_pair(0, 3)) << "no rank is left";
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
  request.answer.stop = {text.substr(text.size() / 2, 4)};
  auto stream = *core.Submit(request);
  loop_.RunPosted();
  while (worker.Step()) loop_.RunPosted();
  const Slice slice = stream->Read(0, 0);
  EXPECT_EQ(slice.finish, v1::FINISH_REASON_STOP);
  const std::vector<int32_t> tokens = Tokens(slice);
  EXPECT_THAT(tokenizer->Decode(tokens, true), HasSubstr(request.answer.stop[0]));
  EXPECT_LE(tokens.size(), 20u);
  EXPECT_EQ(worker.ends, 1);
  stream.reset();
  loop_.RunPosted();
}

TEST_F(CoreTest, APoisonousRequestIsQuarantinedAndNobodyElseIsHarmed) {
  constexpr int32_t kPoison = 4242;
  const Request first = NewRequest(20), second = NewRequest(30);
  Request poison = NewRequest(20);
  poison.prompt.push_back(kPoison);
  auto workers = std::make_pair(NewWorker(), NewWorker());
  auto a = *core_.Submit(first), b = *core_.Submit(poison), c = *core_.Submit(second);
  int deaths = 0;
  for (int turn = 0; turn < 200; ++turn) {
    loop_.RunPosted();
    for (auto* worker : {&workers.first, &workers.second}) {
      if ((*worker)->Computes(kPoison) && turn % 5 == 4) {
        ++deaths;
        worker->reset();
        loop_.RunPosted();
        *worker = NewWorker();
      } else if (!(*worker)->Computes(kPoison)) {
        (*worker)->Step();
      }
    }
  }
  EXPECT_EQ(Tokens(a->Read(0, 0)), Expected(first, 0));
  EXPECT_EQ(Tokens(c->Read(0, 0)), Expected(second, 0));
  EXPECT_EQ(b->Read(0, 0).finish, v1::FINISH_REASON_ERROR);
  EXPECT_EQ(b->Read(0, 0).error.code(), absl::StatusCode::kInternal);
  EXPECT_LE(deaths, 4);
  EXPECT_EQ(core_.metrics().quarantined, 1);
  EXPECT_EQ(core_.active_requests(), 0);
}

TEST_F(CoreTest, SuspectsRunAloneOnlyUntilTheyHaveMadeAToken) {
  const Request first = NewRequest(20), second = NewRequest(20);
  auto worker = NewWorker();
  auto a = *core_.Submit(first), b = *core_.Submit(second);
  for (int death = 0; death < 2; ++death) {
    loop_.RunPosted();
    EXPECT_EQ(worker->held_count(), 2u);
    worker.reset();
    loop_.RunPosted();
    worker = NewWorker();
  }
  EXPECT_EQ(worker->held_count(), 1u);
  worker->Step();
  loop_.RunPosted();
  // The other suspect waits until the rank is empty.
  EXPECT_EQ(worker->held_count(), 1u);
  while (worker->Step()) loop_.RunPosted();
  EXPECT_EQ(Tokens(a->Read(0, 0)), Expected(first, 0));
  EXPECT_EQ(Tokens(b->Read(0, 0)), Expected(second, 0));
  EXPECT_EQ(core_.metrics().quarantined, 0);
}

// Ranks that share an epoch: all die, one by one, when one dies.
class EpochTest : public CoreTest {
 protected:
  static constexpr int kRanks = 4;

  void StartEpoch() {
    v1::WorkerIdentity identity;
    identity.set_attention(true);
    identity.set_experts(true);
    identity.set_profile("fma");
    identity.set_checkpoint("c");
    identity.set_holds_all_experts(true);
    identity.set_epoch(++epoch_);
    for (int i = 0; i < kRanks; ++i) {
      ranks_.push_back(std::make_unique<FakeWorker>(loop_, core_, ++generation_, &identity));
      ranks_.back()->SendReady();
    }
    loop_.RunPosted();
  }
  void EndEpoch(int first) {
    for (int i = 0; i < kRanks; ++i) {
      ranks_[(first + i) % kRanks].reset();
      loop_.RunPosted();
    }
    ranks_.clear();
  }

  uint64_t epoch_ = 0;
  std::vector<std::unique_ptr<FakeWorker>> ranks_;
};

TEST_F(EpochTest, ItsEndIsOneDeathForARequestWhateverRankItWasOn) {
  const Request request = NewRequest(20);
  StartEpoch();
  auto stream = *core_.Submit(request);
  loop_.RunPosted();
  EndEpoch(0);
  StartEpoch();
  // A second one would make a suspect, which keeps the other ranks free; this one is none.
  auto other = *core_.Submit(NewRequest(20));
  loop_.RunPosted();
  int held = 0;
  for (const auto& rank : ranks_) held += static_cast<int>(rank->held_count());
  EXPECT_EQ(held, 2);
  for (int turn = 0; turn < 30; ++turn) {
    for (const auto& rank : ranks_) rank->Step();
    loop_.RunPosted();
  }
  EXPECT_EQ(Tokens(stream->Read(0, 0)), Expected(request, 0));
  EXPECT_EQ(core_.metrics().quarantined, 0);
}

TEST_F(EpochTest, WhatKillsEpochsIsFoundAndWhatRanBesideItIsNot) {
  constexpr int32_t kPoison = 4242;
  const Request first = NewRequest(20), second = NewRequest(20);
  Request poison = NewRequest(20);
  poison.prompt.push_back(kPoison);
  StartEpoch();
  // Each on a rank of its own, so that it is alone there.
  auto a = *core_.Submit(first), b = *core_.Submit(poison), c = *core_.Submit(second);
  int ends = 0;
  for (int turn = 0; turn < 200; ++turn) {
    loop_.RunPosted();
    const auto killed =
        std::ranges::find_if(ranks_, [](const auto& rank) { return rank->Computes(kPoison); });
    if (killed != ranks_.end()) {
      ++ends;
      EndEpoch(static_cast<int>(killed - ranks_.begin()));
      StartEpoch();
      continue;
    }
    for (const auto& rank : ranks_) rank->Step();
  }
  EXPECT_EQ(Tokens(a->Read(0, 0)), Expected(first, 0));
  EXPECT_EQ(Tokens(c->Read(0, 0)), Expected(second, 0));
  EXPECT_EQ(b->Read(0, 0).finish, v1::FINISH_REASON_ERROR);
  EXPECT_EQ(ends, 4);
  EXPECT_EQ(core_.metrics().quarantined, 1);
}

class ManyRanksTest : public CoreTest {
 protected:
  std::unique_ptr<FakeWorker> NewRank(Core& core, bool attention) {
    v1::WorkerIdentity identity;
    identity.set_attention(attention);
    identity.set_experts(!attention);
    identity.set_profile("fma");
    identity.set_checkpoint("c");
    identity.set_address("10.0.0.1:1");
    identity.set_layer_count(3);
    identity.set_expert_count(8);
    identity.set_expert_slots(24);
    auto rank = std::make_unique<FakeWorker>(loop_, core, ++generation_, &identity);
    if (attention) rank->SendReady();
    loop_.RunPosted();
    return rank;
  }
  Core many_{env_,
             {.names = {"toy"}, .vocab_size = 1000, .world = {.term = 9, .expect_ranks = 4}},
             nullptr};
};

TEST_F(ManyRanksTest, SequencesGoToAttentionRanksAloneAndAnyRankMayDie) {
  auto a = NewRank(many_, true), b = NewRank(many_, true), c = NewRank(many_, false);
  EXPECT_EQ(many_.status().reason, "waiting for ranks: 3 of 4");
  EXPECT_EQ(many_.Submit(NewRequest(3)).status().code(), absl::StatusCode::kUnavailable);
  auto d = NewRank(many_, false);
  EXPECT_TRUE(many_.status().ready);
  EXPECT_EQ(d->rank, 3);
  EXPECT_EQ(a->map_number, 1u);
  const Request first = NewRequest(20), second = NewRequest(20);
  auto x = *many_.Submit(first), y = *many_.Submit(second);
  loop_.RunPosted();
  EXPECT_EQ(a->held_count(), 1u);
  EXPECT_EQ(b->held_count(), 1u);
  a->Step();
  loop_.Advance(absl::Milliseconds(50));
  c.reset();
  loop_.RunPosted();
  EXPECT_EQ(a->map_number, 3u);  // without it, then with what the other one has loaded
  EXPECT_EQ(a->unhosted, 0);
  EXPECT_EQ(many_.status().experts_unreplicated, 24);
  a.reset();
  loop_.RunPosted();
  EXPECT_EQ(b->held_count(), 2u);
  while (b->Step()) loop_.RunPosted();
  EXPECT_EQ(Tokens(x->Read(0, 0)), Expected(first, 0));
  EXPECT_EQ(Tokens(y->Read(0, 0)), Expected(second, 0));
  EXPECT_EQ(many_.metrics().replay_mismatches, 0);
  EXPECT_EQ(many_.metrics().workers_lost, 2);
}

TEST_F(ManyRanksTest, ADrainMovesRequestsAndAFenceDropsARank) {
  auto a = NewRank(many_, true), b = NewRank(many_, true), c = NewRank(many_, false),
       d = NewRank(many_, false);
  const Request first = NewRequest(20);
  auto x = *many_.Submit(first);
  loop_.RunPosted();
  a->Step();
  std::vector<absl::Status> said;
  const auto done = [&](absl::Status status) { said.push_back(std::move(status)); };
  many_.Drain(0, false, done);
  many_.Drain(99, false, done);
  for (int second = 0; second < 11; ++second) {
    for (auto* rank : {a.get(), b.get(), c.get(), d.get()}) rank->ReportIdle();
    loop_.Advance(absl::Seconds(1));
  }
  EXPECT_TRUE(said.at(0).ok());
  EXPECT_EQ(said.at(1).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(a->held_count(), 0u);
  EXPECT_EQ(b->held_count(), 1u);
  many_.Fence(1, done);
  many_.Freeze(true, done);
  many_.Drain(0, true, done);
  loop_.RunPosted();
  EXPECT_TRUE(said.at(2).ok());
  EXPECT_TRUE(many_.status().frozen);
  // Nothing was left on it, so it was told to end already.
  EXPECT_EQ(said.at(4).code(), absl::StatusCode::kFailedPrecondition);
  auto e = NewRank(many_, true);
  loop_.Advance(absl::Milliseconds(50));
  while (e->Step()) loop_.RunPosted();
  EXPECT_EQ(Tokens(x->Read(0, 0)), Expected(first, 0));
  std::set<std::string> kinds;
  for (const Event& event : many_.events().Read(0)) kinds.emplace(NameOf(event.kind));
  EXPECT_THAT(kinds, testing::IsSupersetOf({"join", "start", "map", "drain", "revoke", "freeze",
                                            "resubmit", "ready", "experts ready"}));
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
