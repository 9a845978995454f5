#include "coordinator/core/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutant.h"
#include "base/status.h"
#include "coordinator/core/change.h"
#include "coordinator/core/convert.h"

namespace epic::coordinator {

// A cursor into a journal. The client is gone when its stream is destroyed.
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
    // The core closes its mailbox before it goes, and none of its tasks runs later (Core::Close).
    mailbox_->Post([core = core_, request = request_] {
      core->EndNow(request, v1::FINISH_REASON_CANCELLED, absl::OkStatus());
    });
  }
  void SetListener(std::function<void()> listener) override {
    journal_->SetListener(std::move(listener));
  }
  Slice Read(int choice, int from, int count_max) const override {
    return journal_->Read(choice, from, count_max);
  }
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
      events_(env.clock),
      requests_(options_.admission),
      world_(options_.world, events_) {
  model_.names = options_.names;
  model_.vocab_size = options_.vocab_size;
}

Core::~Core() {
  Close();
  // The loop outlives the core, and the functions of these timers hold it.
  if (tick_ != 0) env_.loop.Cancel(tick_);
  for (const auto& [id, entry] : requests_.requests()) {
    if (entry.timer != 0) env_.loop.Cancel(entry.timer);
  }
}

absl::StatusOr<std::shared_ptr<RequestStream>> Core::Submit(Request request) {
  const absl::MutexLock lock(&mutex_);
  if (draining_) return absl::UnavailableError("draining: no new requests are taken");
  // A request is taken also while a loss is being repaired: it then waits for a rank, and does not
  // fail.
  RETURN_IF_ERROR(world_.ReadySoon());
  ASSIGN_OR_RETURN(const uint64_t id, requests_.Add(std::move(request)));
  RequestTable::Entry& entry = *requests_.request(id);
  v1::Sampling& sampling = entry.request.sampling;
  // The seed is drawn once, here: all attempts of a sequence must draw the same tokens (protocol.md
  // 2.1).
  if (!sampling.has_seed()) sampling.set_seed(env_.random.Next());
  // Any thread may submit, but links and timers belong to the loop's thread.
  mailbox_->Post([this, id] { Begin(id); });
  return std::make_shared<Stream>(entry.journal, mailbox_, this, id);
}

absl::Status Core::Cancel(const std::string& request_id) {
  const absl::MutexLock lock(&mutex_);
  const std::optional<uint64_t> found = requests_.Find(request_id);
  if (!found) {
    return absl::NotFoundError(absl::StrCat("no request with id ", request_id, " is running"));
  }
  mailbox_->Post([this, id = *found] { EndNow(id, v1::FINISH_REASON_CANCELLED, {}); });
  return absl::OkStatus();
}

void Core::EndAll(const absl::Status& status) {
  mailbox_->Post([this, status] { EndAllNow(status); });
}

void Core::StartDraining() {
  const absl::MutexLock lock(&mutex_);
  draining_ = true;
}

void Core::Begin(uint64_t id) {
  const Change change(*this);
  RequestTable::Entry* const entry = requests_.request(id);
  // Its client may have left before the loop came to it.
  if (entry == nullptr) return;
  if (entry->request.deadline != absl::InfiniteFuture()) {
    entry->timer = env_.loop.At(entry->request.deadline, [this, id] {
      EndNow(id, v1::FINISH_REASON_ERROR,
             absl::DeadlineExceededError("the request's deadline has passed"));
    });
  }
  // Only stop strings need the text of an answer. Where there are none no parser is made, and the
  // core touches no text.
  for (const uint64_t sequence : requests_.Begin(id)) {
    if (!entry->request.answer.stop.empty() && tokenizer_ != nullptr) {
      requests_.sequence(sequence)->parser.emplace(*tokenizer_, entry->request.prompt,
                                                   entry->request.answer);
    }
    Enqueue(sequence);
  }
  PlaceWaiting();
}

void Core::EndNow(uint64_t request, FinishReason finish, const absl::Status& error) {
  const Change change(*this);
  EndRequest(request, finish, error);
}

void Core::EndAllNow(const absl::Status& error) {
  const Change change(*this);
  // Each end takes its entry out of the table, so there is no walk through it.
  while (!requests_.requests().empty()) {
    EndRequest(requests_.requests().begin()->first, v1::FINISH_REASON_ERROR, error);
  }
}

int64_t Core::TokensToCompute(uint64_t id) {
  const RequestTable::Entry& entry = requests_.RequestOf(id);
  // What was generated before a loss is computed again as forced rows, which cost as the prompt's
  // do.
  return static_cast<int64_t>(entry.request.prompt.size()) +
         entry.journal->length(requests_.sequence(id)->choice);
}

void Core::Enqueue(uint64_t id) {
  const int priority = requests_.RequestOf(id).request.priority;
  if (isolation_.suspect(id)) {
    isolation_.Wait(id, priority);
  } else {
    placer_.Wait(id, priority, TokensToCompute(id));
  }
}

void Core::PlaceWaiting() {
  // First, for the rank that it chooses must not be given others.
  PlaceSuspect();
  if (!placer_.waits()) return;
  // If no rank is kept free, isolation_.rank() is -1 and the list is empty.
  const std::vector<int> kept_free = world_.RanksLostTogether(isolation_.rank());
  std::vector<int> ranks;
  for (const auto& [rank, worker] : workers_) {
    if (world_.Routable(rank) && std::ranges::count(kept_free, rank) == 0) ranks.push_back(rank);
  }
  for (const SequencePlacement& placement : placer_.PlaceAll(ranks)) Start(placement);
}

void Core::PlaceSuspect() {
  if (!isolation_.waits()) return;
  std::vector<Isolation::Candidate> candidates;
  for (const auto& [rank, worker] : workers_) {
    if (world_.Routable(rank)) candidates.push_back({rank, CountTogether(rank)});
  }
  const auto choice = isolation_.PlaceNext(candidates);
  if (!choice) return;
  Start(placer_.Place(choice->sequence, choice->rank, TokensToCompute(choice->sequence)));
}

size_t Core::CountTogether(int rank) const {
  size_t count = 0;
  for (const int other : world_.RanksLostTogether(rank)) count += placer_.sequences(other).size();
  return count;
}

void Core::Start(const SequencePlacement& placement) {
  Worker& worker = workers_.at(placement.rank);
  // An idle rank makes no steps, and none is missing.
  if (placement.first) worker.last_step_at = env_.clock.Now();
  RequestTable::Sequence& sequence = *requests_.sequence(placement.sequence);
  const RequestTable::Entry& entry = requests_.RequestOf(placement.sequence);
  // From here on the journal takes no token of an earlier attempt (protocol.md 2.3).
  sequence.attempt = entry.journal->BeginAttempt(sequence.choice);
  if (sequence.attempt > 1) ++metrics_.resubmissions;
  v1::ControlMessage message;
  v1::StartSequence& start = *message.mutable_start();
  start = StartFrom(entry.request, sequence.choice);
  start.set_sequence(placement.sequence);
  start.set_attempt(sequence.attempt);
  // What was generated before is computed again, and never drawn again: the draw could differ where
  // the client has read the token already.
  const std::vector<int32_t> forced = entry.journal->Tokens(sequence.choice);
  auto& known = EPIC_MUTANT("forced_tokens_join_the_prompt") ? *start.mutable_prompt()
                                                             : *start.mutable_forced();
  known.Add(forced.begin(), forced.end());
  // All choices have one prompt, so one of them scores it, and only once.
  start.set_prompt_logprobs(entry.request.prompt_logprobs && sequence.choice == 0 &&
                            !entry.journal->prompt_known());
  worker.link->Send(std::move(message));
}

void Core::Resubmit(uint64_t id) {
  placer_.Remove(id);
  // A suspect that ran is known to both.
  isolation_.Leave(id);
  Enqueue(id);
}

void Core::SendEnd(int rank, uint64_t id) {
  v1::ControlMessage message;
  message.mutable_end()->set_sequence(id);
  // A worker ignores an end that names an earlier attempt than the one that it holds.
  message.mutable_end()->set_attempt(requests_.sequence(id)->attempt);
  workers_.at(rank).link->Send(std::move(message));
}

void Core::EndSequence(uint64_t id, FinishReason finish, absl::Status error) {
  if (requests_.sequence(id) == nullptr) return;
  // This goes first: the message needs the rank and the attempt, which are forgotten below.
  if (const int rank = placer_.RankOf(id); rank >= 0) SendEnd(rank, id);
  placer_.Remove(id);
  isolation_.Forget(id);
  const auto ended = requests_.EndSequence(id, finish, std::move(error));
  if (ended && ended->timer != 0) env_.loop.Cancel(ended->timer);
}

void Core::EndRequest(uint64_t id, FinishReason finish, const absl::Status& error) {
  const RequestTable::Entry* const entry = requests_.request(id);
  if (entry == nullptr) return;
  // A copy: the entry goes with its last sequence.
  const std::vector<uint64_t> sequences = entry->sequences;
  for (const uint64_t sequence : sequences) EndSequence(sequence, finish, error);
  if (sequences.empty()) requests_.EndBeforeBegin(id, finish, error);
  CHECK(requests_.request(id) == nullptr) << "request " << id << " outlived its sequences";
}

int Core::active_requests() const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int>(requests_.requests().size());
}

MetricsSnapshot Core::metrics() const {
  const absl::MutexLock lock(&mutex_);
  return metrics_;
}

ModelInfo Core::model() const {
  const absl::MutexLock lock(&mutex_);
  return model_;
}

}  // namespace epic::coordinator
