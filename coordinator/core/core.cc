#include "coordinator/core/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutant.h"
#include "base/status.h"
#include "coordinator/core/convert.h"
#include "coordinator/routing/routing.h"

namespace epic::coordinator {
namespace {

int64_t TokensOf(const Request& request) {
  return static_cast<int64_t>(request.prompt.size() + request.max_tokens) * request.choices;
}

}  // namespace

// A cursor; the client is gone when it goes.
class Core::Stream : public RequestStream {
 public:
  Stream(std::shared_ptr<Journal> journal, std::shared_ptr<cluster::Mailbox> mailbox, Core* core,
         uint64_t request)
      : journal_(std::move(journal)),
        mailbox_(std::move(mailbox)),
        core_(core),
        request_(request) {}
  ~Stream() override {
    journal_->SetListener(nullptr);
    if (journal_->all_sealed()) return;
    // The core closes the mailbox before it goes, and no task runs after that.
    mailbox_->Post([core = core_, request = request_] {
      core->Locked([&] { core->EndRequest(request, FinishReason::kCancelled, absl::OkStatus()); });
    });
  }
  void SetListener(std::function<void()> listener) override {
    journal_->SetListener(std::move(listener));
  }
  Slice Read(int choice, int from) const override { return journal_->Read(choice, from); }
  int cached_tokens() const override { return journal_->cached_tokens(); }
  std::vector<JournalToken> prompt_logprobs() const override { return journal_->prompt_logprobs(); }

 private:
  const std::shared_ptr<Journal> journal_;
  const std::shared_ptr<cluster::Mailbox> mailbox_;
  Core* const core_;
  const uint64_t request_;
};

Core::Core(Env env, CoreOptions options, std::shared_ptr<const text::Tokenizer> tokenizer)
    : env_(env),
      options_(std::move(options)),
      tokenizer_(std::move(tokenizer)),
      mailbox_(std::make_shared<cluster::Mailbox>(env.loop)),
      admission_(options_.admission),
      events_(env.clock),
      world_(options_.world, events_) {
  model_.names = options_.names;
  model_.vocab_size = options_.vocab_size;
}

Core::~Core() {
  Close();
  if (tick_ != 0) env_.loop.Cancel(tick_);
  for (const auto& [id, entry] : requests_) {
    if (entry.timer != 0) env_.loop.Cancel(entry.timer);
  }
}

absl::StatusOr<std::shared_ptr<RequestStream>> Core::Submit(Request request) {
  const std::lock_guard lock(mutex_);
  if (draining_) return absl::UnavailableError("draining: no new requests are taken");
  RETURN_IF_ERROR(world_.ReadySoon());
  if (ids_.count(request.id) > 0) {
    return absl::AlreadyExistsError(absl::StrCat("a request with id ", request.id, " is running"));
  }
  RETURN_IF_ERROR(admission_.Admit(TokensOf(request)));
  const uint64_t id = next_id_++;
  ids_[request.id] = id;
  Entry& entry = requests_[id];
  entry.journal = std::make_shared<Journal>(request.choices);
  entry.seed = request.sampling.seed ? *request.sampling.seed : env_.random.Next();
  entry.request = std::move(request);
  mailbox_->Post([this, id] { Locked([&] { Begin(id); }); });
  return std::make_shared<Stream>(entry.journal, mailbox_, this, id);
}

absl::Status Core::Cancel(const std::string& request_id) {
  const std::lock_guard lock(mutex_);
  const auto found = ids_.find(request_id);
  if (found == ids_.end()) {
    return absl::NotFoundError(absl::StrCat("no request with id ", request_id, " is running"));
  }
  mailbox_->Post([this, id = found->second] {
    Locked([&] { EndRequest(id, FinishReason::kCancelled, absl::OkStatus()); });
  });
  return absl::OkStatus();
}

void Core::Begin(uint64_t id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  Entry& entry = found->second;
  if (entry.request.deadline != absl::InfiniteFuture()) {
    entry.timer = env_.loop.At(entry.request.deadline, [this, id] {
      Locked([&] {
        EndRequest(id, FinishReason::kError,
                   absl::DeadlineExceededError("the request's deadline has passed"));
      });
    });
  }
  for (int choice = 0; choice < entry.request.choices; ++choice) {
    const uint64_t sequence_id = next_id_++;
    Sequence& sequence = sequences_[sequence_id];
    sequence.request = id;
    sequence.choice = choice;
    if (!entry.request.answer.stop.empty() && tokenizer_ != nullptr) {
      sequence.parser.emplace(*tokenizer_, entry.request.prompt, entry.request.answer);
    }
    entry.sequences.push_back(sequence_id);
    waiting_.insert({-entry.request.priority, sequence_id});
  }
  PlaceWaiting();
}

void Core::PlaceWaiting() {
  PlaceSuspect();
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    const uint64_t sequence = next->second;
    if (sequences_.at(sequence).deaths.suspect()) {
      ++next;
      continue;
    }
    if (!Place(sequence)) return;
    next = waiting_.erase(next);
  }
}

bool Core::Place(uint64_t id) {
  std::vector<RankLoad> loads;
  const std::vector<int> isolated = world_.RanksLostTogether(isolated_rank_);
  for (const auto& [rank, worker] : workers_) {
    if (!world_.Routable(rank) || std::ranges::count(isolated, rank) > 0) continue;
    RankLoad load{.rank = rank,
                  .ready = true,
                  .running = static_cast<int>(worker.sequences.size()),
                  .kv_pages_used = worker.step.kv_pages_used,
                  .kv_page_count = world_.members().at(rank).ready->kv_page_count()};
    for (const uint64_t other : worker.sequences) {
      load.uncomputed_tokens += sequences_.at(other).uncomputed_tokens;
    }
    loads.push_back(load);
  }
  const std::optional<int> rank = ChooseRank(loads);
  if (!rank) return false;
  PlaceAt(*rank, id);
  return true;
}

void Core::PlaceAt(int rank, uint64_t id) {
  Sequence& sequence = sequences_.at(id);
  Worker& worker = workers_.at(rank);
  if (worker.sequences.empty()) worker.last_step_at = env_.clock.Now();
  worker.sequences.insert(id);
  sequence.rank = rank;
  SendStart(id, sequence, worker);
}

void Core::PlaceSuspect() {
  if (isolated_ != 0) return;
  const auto suspect = std::ranges::find_if(
      waiting_, [this](const auto& entry) { return sequences_.at(entry.second).deaths.suspect(); });
  if (suspect == waiting_.end()) {
    isolated_rank_ = -1;
    return;
  }
  if (isolated_rank_ < 0 || !world_.Routable(isolated_rank_)) {
    isolated_rank_ = -1;
    for (const auto& [rank, worker] : workers_) {
      if (!world_.Routable(rank)) continue;
      if (isolated_rank_ < 0 || CountTogether(rank) < CountTogether(isolated_rank_)) {
        isolated_rank_ = rank;
      }
    }
  }
  if (isolated_rank_ < 0 || CountTogether(isolated_rank_) > 0) return;
  isolated_ = suspect->second;
  waiting_.erase(suspect);
  PlaceAt(isolated_rank_, isolated_);
}

size_t Core::CountTogether(int rank) const {
  size_t count = 0;
  for (const int each : world_.RanksLostTogether(rank)) count += workers_.at(each).sequences.size();
  return count;
}

void Core::EndIsolation(uint64_t id) {
  if (isolated_ != id) return;
  isolated_ = 0;
  isolated_rank_ = -1;
}

void Core::SendStart(uint64_t id, Sequence& sequence, Worker& worker) {
  const Entry& entry = requests_.at(sequence.request);
  sequence.attempt = entry.journal->BeginAttempt(sequence.choice);
  if (sequence.attempt > 1) ++metrics_.resubmissions;
  v1::ControlMessage message;
  v1::StartSequence& start = *message.mutable_start();
  start = StartFrom(entry.request, entry.seed, sequence.choice);
  start.set_sequence(id);
  start.set_attempt(sequence.attempt);
  const std::vector<int32_t> forced = entry.journal->Tokens(sequence.choice);
  auto& known = EPIC_MUTANT("forced_tokens_join_the_prompt") ? *start.mutable_prompt()
                                                             : *start.mutable_forced();
  known.Add(forced.begin(), forced.end());
  start.set_prompt_logprobs(entry.request.prompt_logprobs && sequence.choice == 0 &&
                            !entry.journal->prompt_known());
  sequence.uncomputed_tokens = static_cast<int64_t>(entry.request.prompt.size() + forced.size());
  worker.link->Send(std::move(message));
}

void Core::Resubmit(uint64_t id) {
  Sequence& sequence = sequences_.at(id);
  if (sequence.rank >= 0) workers_.at(sequence.rank).sequences.erase(id);
  sequence.rank = -1;
  EndIsolation(id);
  waiting_.insert({-requests_.at(sequence.request).request.priority, id});
}

void Core::EndSequence(uint64_t id, FinishReason finish, absl::Status error) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  const Sequence& sequence = found->second;
  const uint64_t request_id = sequence.request;
  Entry& entry = requests_.at(request_id);
  entry.journal->Seal(sequence.choice, finish, std::move(error));
  grown_[request_id] = entry.journal;
  if (sequence.rank >= 0) {
    Worker& worker = workers_.at(sequence.rank);
    worker.sequences.erase(id);
    v1::ControlMessage message;
    message.mutable_end()->set_sequence(id);
    message.mutable_end()->set_attempt(sequence.attempt);
    worker.link->Send(std::move(message));
  }
  EndIsolation(id);
  waiting_.erase({-entry.request.priority, id});
  sequences_.erase(found);
  if (!entry.journal->all_sealed()) return;
  if (entry.timer != 0) env_.loop.Cancel(entry.timer);
  admission_.Release(TokensOf(entry.request));
  ids_.erase(entry.request.id);
  requests_.erase(request_id);
}

void Core::EndRequest(uint64_t id, FinishReason finish, const absl::Status& error) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  const std::vector<uint64_t> sequences = found->second.sequences;
  for (const uint64_t sequence : sequences) EndSequence(sequence, finish, error);
  if (!sequences.empty()) return;
  // It had not begun.
  Entry& entry = found->second;
  for (int choice = 0; choice < entry.request.choices; ++choice) {
    entry.journal->Seal(choice, finish, error);
  }
  grown_[id] = entry.journal;
  admission_.Release(TokensOf(entry.request));
  ids_.erase(entry.request.id);
  requests_.erase(found);
}

void Core::StartDraining() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

void Core::EndAll(const absl::Status& status) {
  mailbox_->Post([this, status] {
    Locked([&] {
      while (!requests_.empty()) {
        EndRequest(requests_.begin()->first, FinishReason::kError, status);
      }
    });
  });
}

int Core::active_requests() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(requests_.size());
}

MetricsSnapshot Core::metrics() const {
  const std::lock_guard lock(mutex_);
  return metrics_;
}

absl::StatusOr<cluster::ControlLinkHandlers> Core::AddWorker(
    const v1::ControlHello& hello, std::unique_ptr<cluster::ControlLink> link) {
  absl::StatusOr<int> rank;
  Locked([&] {
    ChangeWorld([&] {
      rank = world_.Join(hello, env_.clock.Now());
      if (!rank.ok()) return;
      Worker& worker = workers_[*rank];
      worker.link = std::move(link);
      worker.last_step_at = env_.clock.Now();
    });
    if (tick_ == 0 && !workers_.empty()) {
      tick_ = env_.loop.At(env_.clock.Now() + options_.world.liveness.period, [this] { Tick(); });
    }
  });
  if (!rank.ok()) return rank.status();
  return cluster::ControlLinkHandlers{
      .on_message =
          [this, rank = *rank](const v1::ControlMessage& message) {
            Locked([&] { OnMessage(rank, message); });
          },
      .on_down =
          [this, rank = *rank](const absl::Status& status) {
            Locked([&] { ChangeWorld([&] { world_.OnClosed(rank, status, env_.clock.Now()); }); });
          }};
}

void Core::Tick() {
  Locked([&] {
    std::map<int, int> sequences;
    for (const auto& [rank, worker] : workers_) {
      sequences[rank] = static_cast<int>(worker.sequences.size());
    }
    ChangeWorld([&] { world_.OnTime(env_.clock.Now(), sequences); });
    tick_ = 0;
    if (workers_.empty()) return;
    tick_ = env_.loop.At(env_.clock.Now() + options_.world.liveness.period, [this] { Tick(); });
  });
}

void Core::Operate(std::function<absl::Status()> change, Done done) {
  const bool posted = mailbox_->Post([this, change = std::move(change), done] {
    absl::Status status;
    Locked([&] { ChangeWorld([&] { status = change(); }); });
    done(status);
  });
  if (!posted) done(absl::UnavailableError("the coordinator is going away"));
}

void Core::Fence(int rank, Done done) {
  Operate([this, rank] { return world_.Fence(rank, env_.clock.Now()); }, std::move(done));
}

void Core::Freeze(bool frozen, Done done) {
  const auto change = [this, frozen] {
    world_.Freeze(frozen);
    return absl::OkStatus();
  };
  Operate(change, std::move(done));
}

void Core::Drain(int rank, bool cancel, Done done) {
  const auto change = [this, rank, cancel] {
    return cancel ? world_.CancelDrain(rank) : world_.Drain(rank, env_.clock.Now());
  };
  Operate(change, std::move(done));
}

}  // namespace epic::coordinator
