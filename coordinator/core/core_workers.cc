// The half of Core that hears workers.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/mutant.h"
#include "coordinator/core/change.h"
#include "coordinator/core/convert.h"
#include "coordinator/core/core.h"

namespace epic::coordinator {

absl::StatusOr<cluster::ControlLinkHandlers> Core::AddWorker(
    const v1::ControlHello& hello, std::unique_ptr<cluster::ControlLink> link) {
  const Change change(*this);
  const absl::StatusOr<int> rank = world_.Join(hello, env_.clock.Now());
  if (rank.ok()) {
    // The worker is entered before the actions are carried out: its welcome goes over its link.
    placer_.AddRank(*rank);
    workers_[*rank] = {.link = std::move(link), .step = {}, .last_step_at = env_.clock.Now()};
  }
  // Also for one that was refused: the world may have planned before.
  CarryOut(world_.Take());
  if (tick_ == 0 && !workers_.empty()) ScheduleTick();
  if (!rank.ok()) return rank.status();
  return cluster::ControlLinkHandlers{
      .on_message = [this, rank = *rank](const auto& message) { OnMessage(rank, message); },
      .on_down = [this, rank = *rank](const absl::Status& why) { OnDown(rank, why); }};
}

void Core::OnMessage(int rank, const v1::ControlMessage& message) {
  const Change change(*this);
  // Its link may deliver what was queued before the rank was lost.
  if (!workers_.contains(rank)) return;
  switch (message.body_case()) {
    case v1::ControlMessage::kStep:
      return OnStep(rank, message.step());
    case v1::ControlMessage::kSequenceFailed:
      return OnFailed(rank, message.sequence_failed());
    default:
      // The world goes first, because it may refuse the rank, and OnReady looks at that.
      world_.OnMessage(rank, message, env_.clock.Now());
      if (message.has_ready()) OnReady(rank);
      CarryOut(world_.Take());
  }
}

void Core::OnDown(int rank, const absl::Status& why) {
  const Change change(*this);
  world_.OnClosed(rank, why, env_.clock.Now());
  CarryOut(world_.Take());
}

void Core::ScheduleTick() {
  tick_ = env_.loop.At(env_.clock.Now() + options_.world.liveness.period, [this] { OnTick(); });
}

void Core::OnTick() {
  const Change change(*this);
  std::map<int, int> sequences;
  for (const auto& [rank, worker] : workers_) {
    sequences[rank] = static_cast<int>(placer_.sequences(rank).size());
  }
  world_.OnTime(env_.clock.Now(), sequences);
  CarryOut(world_.Take());
  tick_ = 0;
  if (!workers_.empty()) ScheduleTick();
}

void Core::CarryOut(WorldActions actions) {
  // In the world's order: a rank is told before it, or others, are let go.
  for (auto& [rank, message] : actions.messages) {
    const auto worker = workers_.find(rank);
    if (worker != workers_.end()) worker->second.link->Send(std::move(message));
  }
  for (const int rank : actions.move) MoveAway(rank);
  for (const LostRanks& lost : actions.lost) OnLost(lost);
  PlaceWaiting();
}

void Core::OnReady(int rank) {
  const Member& member = world_.members().at(rank);
  if (!member.refusal.empty()) return;
  const v1::WorkerReady& ready = *member.ready;
  placer_.SetKvPageCount(rank, ready.kv_page_count());
  // All ranks have the profile and the checkpoint of the first one (protocol.md 1.6).
  if (model_.system_fingerprint.empty()) {
    model_.system_fingerprint = Fingerprint(ready.profile(), ready.checkpoint());
  }
  // Any rank may get any request, so the smallest counts.
  model_.max_model_len = model_.max_model_len == 0
                             ? ready.max_model_len()
                             : std::min(model_.max_model_len, ready.max_model_len());
}

void Core::OnStep(int rank, const v1::StepReport& report) {
  Worker& worker = workers_.at(rank);
  worker.last_step_at = env_.clock.Now();
  worker.step = StepCountsFrom(worker.step, report);
  placer_.SetKvPagesUsed(rank, worker.step.kv_pages_used);
  // Prompts go before tokens: a stream prints the echo of a prompt with its first token, and the
  // scores must be in the journal by then.
  for (const v1::PromptScored& prompt : report.prompts()) OnPrompt(rank, prompt);
  for (const v1::SequenceToken& token : report.tokens()) OnToken(rank, token);
  PlaceWaiting();
}

void Core::OnPrompt(int rank, const v1::PromptScored& prompt) {
  const uint64_t id = prompt.sequence();
  const RequestTable::Sequence* const sequence = requests_.sequence(id);
  if (sequence == nullptr || placer_.RankOf(id) != rank) return;
  if (prompt.attempt() != sequence->attempt) return;
  placer_.SetComputed(id);
  // All choices have the same prompt; the first one's worker was asked for its scores.
  if (sequence->choice != 0) return;
  std::vector<JournalToken> logprobs;
  for (const v1::SequenceToken& token : prompt.prompt_logprobs()) {
    logprobs.push_back(TokenFrom(token));
  }
  requests_.RequestOf(id).journal->SetPrompt(prompt.cached_tokens(), std::move(logprobs));
  requests_.NoteGrowth(sequence->request);
}

void Core::OnToken(int rank, const v1::SequenceToken& token) {
  const uint64_t id = token.sequence();
  RequestTable::Sequence* const sequence = requests_.sequence(id);
  // A rank that no longer has the sequence may still send (protocol.md 4.7).
  if (sequence == nullptr || placer_.RankOf(id) != rank) return;
  Journal& journal = *requests_.RequestOf(id).journal;
  switch (journal.Append(sequence->choice, token.attempt(), token.position(), TokenFrom(token))) {
    case AppendResult::kStale:
    case AppendResult::kRepeated:
      return;
    case AppendResult::kMismatch:
      // The client may have read the first token, so the journal keeps it and the sequence goes on.
      ++metrics_.replay_mismatches;
      LOG_ERROR("rank {}: sequence {} has another token at position {} than before", rank, id,
                token.position());
      return;
    case AppendResult::kGap:
      LOG_WARNING("rank {}: sequence {} jumps to position {}; it is submitted again", rank, id,
                  token.position());
      return Resubmit(id);
    case AppendResult::kAppended:
      break;
  }
  requests_.NoteGrowth(sequence->request);
  placer_.SetComputed(id);
  isolation_.OnToken(id);
  // The journal ends where the clients' parsers end the text, for they are of the same format.
  if (sequence->parser) sequence->parser->Push(token.token());
  const bool stopped = sequence->parser && sequence->parser->ended();
  const FinishReason finish = stopped ? v1::FINISH_REASON_STOP : token.finish_reason();
  switch (finish) {
    case v1::FINISH_REASON_NONE:
      return;
    case v1::FINISH_REASON_STOP:
    case v1::FINISH_REASON_LENGTH:
      return EndSequence(id, finish, absl::OkStatus());
    default:
      // The worker has ended the sequence: without an end here, its stream would wait for ever.
      EndSequence(id, v1::FINISH_REASON_ERROR,
                  absl::InternalError(absl::StrCat("rank ", rank, " ended the sequence for reason ",
                                                   static_cast<int>(finish),
                                                   ", which no worker may give")));
  }
}

void Core::OnFailed(int rank, const v1::SequenceFailed& failed) {
  const uint64_t id = failed.sequence();
  const RequestTable::Sequence* const sequence = requests_.sequence(id);
  if (sequence == nullptr || placer_.RankOf(id) != rank) return;
  // The attempt that failed may not be the one that runs now, on the same rank.
  if (sequence->attempt != failed.attempt()) return;
  const auto code = static_cast<absl::StatusCode>(failed.code());
  if (code == absl::StatusCode::kUnavailable) {
    // A worker answers in this way while it drains. Another rank computes the sequence, or the
    // worker's successor.
    world_.NoteDraining(rank, env_.clock.Now());
    Resubmit(id);
    return PlaceWaiting();
  }
  EndSequence(id, v1::FINISH_REASON_ERROR, absl::Status(code, failed.message()));
}

std::vector<uint64_t> Core::RemoveWorker(int rank) {
  const std::set<uint64_t>& on_rank = placer_.sequences(rank);
  const std::vector<uint64_t> sequences(on_rank.begin(), on_rank.end());
  for (const uint64_t id : sequences) {
    if (EPIC_MUTANT("lost_ranks_keep_sequences")) {
      placer_.Remove(id);
    } else {
      Resubmit(id);
    }
  }
  placer_.RemoveRank(rank);
  const auto worker = workers_.find(rank);
  // The link may be on the stack: it goes when the loop is done with what it does now.
  env_.loop.Post([link = std::shared_ptr<cluster::ControlLink>(std::move(worker->second.link))] {});
  workers_.erase(worker);
  return sequences;
}

void Core::OnLost(const LostRanks& lost) {
  std::set<uint64_t> sequences;
  for (const int rank : lost.ranks) {
    if (!workers_.contains(rank)) continue;
    ++metrics_.workers_lost;
    if (const size_t count = placer_.sequences(rank).size(); count > 0) {
      events_.Append(EventKind::kResubmit, rank, 0,
                     absl::StrCat("its ", count, " sequences go on elsewhere"));
    }
    const std::vector<uint64_t> own = RemoveWorker(rank);
    sequences.insert(own.begin(), own.end());
  }
  // Drains, fences and verdicts are no deaths that a request can be blamed for (protocol.md 5.4).
  if (!lost.unexplained) return;
  for (const uint64_t id : sequences) {
    // Its request may have been quarantined with another one of its sequences.
    if (requests_.sequence(id) != nullptr) OnDeath(id, sequences.size() == 1);
  }
}

void Core::OnDeath(uint64_t id, bool alone) {
  const RequestTable::Sequence& sequence = *requests_.sequence(id);
  const RequestTable::Entry& entry = requests_.RequestOf(id);
  const int length = entry.journal->length(sequence.choice);
  switch (isolation_.OnDeath(id, length, alone)) {
    case Deaths::Verdict::kGoesOn:
      return;
    case Deaths::Verdict::kSuspect:
      // From the queue of all to that of suspects.
      placer_.Remove(id);
      isolation_.Wait(id, entry.request.priority);
      events_.Append(EventKind::kSuspect, -1, 0,
                     absl::StrCat("request ", entry.request.id,
                                  " runs alone: ranks died twice at its token ", length));
      return;
    case Deaths::Verdict::kQuarantine:
      ++metrics_.quarantined;
      events_.Append(EventKind::kQuarantine, -1, 0,
                     absl::StrCat("request ", entry.request.id, ": ranks that computed it alone ",
                                  "died twice at its token ", length));
      return EndRequest(sequence.request, v1::FINISH_REASON_ERROR,
                        absl::InternalError("the workers that computed this request died twice; "
                                            "it is not tried again"));
  }
}

void Core::MoveAway(int rank) {
  if (!workers_.contains(rank) || placer_.sequences(rank).empty()) return;
  // A copy: each of them leaves the rank.
  const std::set<uint64_t> sequences = placer_.sequences(rank);
  events_.Append(EventKind::kResubmit, rank, 0,
                 absl::StrCat("its ", sequences.size(), " sequences move elsewhere"));
  for (const uint64_t id : sequences) {
    SendEnd(rank, id);
    Resubmit(id);
  }
  CHECK(placer_.sequences(rank).empty()) << "on rank " << rank;
}

}  // namespace epic::coordinator
