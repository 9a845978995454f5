#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutant.h"

namespace epic::worker {

Scheduler::Scheduler(const SchedulerLimits& limits, PageLedger& pages)
    : limits_(limits), pages_(pages) {
  CHECK_GT(limits.max_num_batched_tokens, 0);
  CHECK_GT(limits.max_num_seqs, 0);
  // Each running sequence may want the logits of a row in the same step.
  CHECK_GE(limits.max_logit_rows, limits.max_num_seqs);
}

absl::Status Scheduler::Add(Sequence sequence) {
  CHECK(!sequence.tokens.empty());
  CHECK_GT(sequence.length_max, sequence.length());
  CHECK_LE(sequence.prompt_length, sequence.length());
  CHECK_LT(sequence.scored_rows, sequence.length());
  CHECK(!sequences_.contains(sequence.name)) << sequence.name;
  // The last token is never computed.
  const int pages = PagesFor(sequence.length_max - 1);
  if (pages > pages_.page_count()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the sequence may grow to ", sequence.length_max, " tokens, which need ", pages,
        " KV pages of ", kernels::kPageTokens, " tokens; the worker has ", pages_.page_count()));
  }
  sequence.place = {sequence.priority, next_arrival_++};
  sequence.lease = pages_.Open();
  const SequenceName name = sequence.name;
  Sequence& added = sequences_.emplace(name, std::move(sequence)).first->second;
  waiting_.emplace(added.place, &added);
  return absl::OkStatus();
}

void Scheduler::Remove(const SequenceName& name) {
  const auto found = sequences_.find(name);
  if (found == sequences_.end()) return;
  running_.erase(found->second.place);
  waiting_.erase(found->second.place);
  sequences_.erase(found);
}

void Scheduler::Clear() {
  running_.clear();
  waiting_.clear();
  sequences_.clear();
}

const Batch& Scheduler::Plan() {
  rows_left_ = limits_.max_num_batched_tokens;
  logits_left_ = limits_.max_logit_rows;
  chosen_.clear();
  // One that came to stand before all that run is let in before they take their rows.
  if (!running_.empty() && FirstMayEnter() && waiting_.begin()->first < running_.begin()->first) {
    LetFirstIn();
  }
  // If the first in line is no decode, it gets a row even where the others' would fill the step.
  const bool first_comes_later = !running_.empty() && !running_.begin()->second->decodes();
  rows_left_ -= first_comes_later ? 1 : 0;
  ChooseRunning(/*decode=*/true);
  rows_left_ += first_comes_later ? 1 : 0;
  ChooseRunning(/*decode=*/false);
  Admit();
  LeasePages();
  BuildPlan();
  // The first in line is always among the chosen: a row is left for it, as are logits (others of
  // the running ones want one each at most before it is asked), and it may take any page.
  CHECK(!batch_.empty() || sequences_.empty());
  return batch_;
}

void Scheduler::Commit() {
  for (const BatchSequence& each : batch_.sequences) {
    Sequence* sequence = Find(each);
    if (sequence == nullptr) continue;  // removed while the batch was computed
    CHECK_EQ(sequence->computed, each.first_position);
    CHECK_EQ(sequence->planned_rows, each.row_count);
    sequence->computed += std::exchange(sequence->planned_rows, 0);
    // After a preemption the same rows come again; their logits were handed out before.
    sequence->scored = std::max(sequence->scored, sequence->computed);
  }
}

void Scheduler::Accept(const SequenceName& name, std::span<const int32_t> tokens) {
  Sequence& sequence = sequences_.at(name);
  CHECK(!tokens.empty()) << name;
  CHECK_EQ(sequence.planned_rows, 0) << name;
  CHECK_EQ(sequence.remaining(), 0) << name;
  CHECK_LE(sequence.tokens.size() + tokens.size(), static_cast<size_t>(sequence.length_max));
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
  sequence.accepted = static_cast<int>(tokens.size());
}

void Scheduler::Truncate(const SequenceName& name, int length) {
  Sequence& sequence = sequences_.at(name);
  CHECK_EQ(sequence.planned_rows, 0) << name;
  CHECK_GE(length, std::max(1, sequence.prompt_length)) << name;
  CHECK_LE(length, sequence.length()) << name;
  sequence.tokens.resize(length);
  sequence.accepted = 1;
  // What a kept page holds beyond is never read: rows attend to the records before them, and those
  // are written first.
  sequence.computed = std::min(sequence.computed, length);
  sequence.lease.Shrink(PagesFor(sequence.computed));
}

const Sequence* Scheduler::Find(const SequenceName& name) const {
  const auto found = sequences_.find(name);
  return found == sequences_.end() ? nullptr : &found->second;
}

Sequence* Scheduler::Find(const BatchSequence& entry) {
  const auto found = sequences_.find(entry.name);
  // A coordinator that starts anew gives names again. Places are never equal.
  const bool same = found != sequences_.end() && found->second.place == entry.place;
  return same ? &found->second : nullptr;
}

uint32_t Scheduler::AttemptOf(uint64_t sequence) const {
  const auto above = sequences_.lower_bound({sequence + 1, 0});
  if (above == sequences_.begin()) return 0;
  const SequenceName& name = std::prev(above)->first;
  return name.sequence == sequence ? name.attempt : 0;
}

void Scheduler::ChooseRunning(bool decode) {
  for (const auto& [place, sequence] : running_) {
    if (sequence->decodes() == decode) Choose(*sequence);
  }
}

// Nobody overtakes: small ones that pass a large one could keep it waiting for ever.
void Scheduler::Admit() {
  while (rows_left_ > 0 && FirstMayEnter()) Choose(LetFirstIn());
}

// Whether what is known of all running sequences and of the first that waits has room, with a page
// each to grow: one that is let in does not push another out, nor is pushed out, at once.
bool Scheduler::FirstMayEnter() const {
  if (waiting_.empty() || running() >= limits_.max_num_seqs) return false;
  if (running_.empty()) return true;
  const auto wanted = [](const Sequence& each) {
    return std::min(PagesFor(each.length()) + 1, PagesFor(each.length_max - 1));
  };
  int64_t pages = wanted(*waiting_.begin()->second);
  for (const auto& [place, other] : running_) pages += wanted(*other);
  return pages <= pages_.page_count();
}

Sequence& Scheduler::LetFirstIn() {
  Sequence& sequence = *waiting_.begin()->second;
  CHECK_EQ(sequence.lease.page_count(), 0) << sequence.name;
  waiting_.erase(waiting_.begin());
  running_.emplace(sequence.place, &sequence);
  return sequence;
}

void Scheduler::Choose(Sequence& sequence) {
  const int rows = RowsWithin(sequence, std::min(sequence.remaining(), rows_left_));
  if (rows <= 0) return;
  rows_left_ -= rows;
  logits_left_ -= LogitRows(sequence, rows);
  sequence.chosen_rows = rows;
  chosen_.push_back(&sequence);
}

// At most `rows`, so that the logits wanted of them fit in what is left.
int Scheduler::RowsWithin(const Sequence& sequence, int rows) const {
  while (rows > 0 && LogitRows(sequence, rows) > logits_left_) {
    rows -= std::min(rows, LogitRows(sequence, rows) - logits_left_);
  }
  return rows;
}

int Scheduler::LogitRows(const Sequence& sequence, int rows) const {
  const int end = sequence.computed + rows;
  const int first_scored = std::max(sequence.computed, sequence.scored);
  const int scored = std::max(0, std::min(end, sequence.scored_rows) - first_scored);
  return scored + (end == sequence.length() ? 1 : 0);
}

// In order of place, so that pages go to the first in line, whichever was chosen first. That is why
// the first never starves: all pages but its own belong to sequences behind it, each of which it
// may push out, and Add has refused what needs more pages than there are.
void Scheduler::LeasePages() {
  std::vector<Sequence*> in_line = chosen_;
  std::ranges::sort(in_line, {}, [](const Sequence* sequence) { return sequence->place; });
  for (Sequence* sequence : in_line) {
    if (sequence->chosen_rows > 0) LeaseFor(*sequence);  // else it has just stepped back
  }
}

// Leases the pages of the chosen rows. Where even pushing out those behind frees too few, the
// sequence gets fewer rows, perhaps none.
void Scheduler::LeaseFor(Sequence& sequence) {
  const int wanted = PagesFor(sequence.computed + sequence.chosen_rows);
  const auto missing = [&] { return wanted - sequence.lease.page_count(); };
  while (missing() > pages_.free_count() && PreemptBehind(sequence.place)) {
  }
  CHECK(sequence.lease.Grow(std::clamp(missing(), 0, pages_.free_count())));
  const int room = sequence.lease.page_count() * kernels::kPageTokens - sequence.computed;
  sequence.chosen_rows = std::min(sequence.chosen_rows, room);
}

// Takes the pages of the last in line that holds any, if it stands behind `place`. It may have been
// chosen for this very batch; it leaves the batch then.
bool Scheduler::PreemptBehind(const PlaceInLine& place) {
  for (auto last = running_.rbegin(); last != running_.rend() && last->first > place; ++last) {
    Sequence& victim = *last->second;
    if (victim.lease.page_count() == 0) continue;
    victim.lease.Shrink(0);
    if (!EPIC_MUTANT("preempted_rows_stay_computed")) victim.computed = 0;
    victim.chosen_rows = 0;
    waiting_.emplace(victim.place, &victim);
    running_.erase(victim.place);
    ++preemptions_;
    return true;
  }
  return false;
}

void Scheduler::BuildPlan() {
  batch_ = {};
  for (Sequence* sequence : chosen_) {
    CHECK_EQ(sequence->planned_rows, 0) << sequence->name << " is in a batch that was not ended";
    sequence->planned_rows = std::exchange(sequence->chosen_rows, 0);
    if (sequence->planned_rows > 0) AppendRows(*sequence);
  }
}

void Scheduler::AppendRows(Sequence& sequence) {
  kernels::StepPlan& plan = batch_.plan;
  const int index = static_cast<int>(plan.sequences.size());
  const int begin = sequence.computed, end = begin + sequence.planned_rows;
  BatchSequence entry{.name = sequence.name,
                      .place = sequence.place,
                      .first_row = plan.rows(),
                      .row_count = sequence.planned_rows,
                      .first_position = begin,
                      .first_logit = static_cast<int32_t>(plan.logit_rows.size())};
  plan.sequences.push_back({.first_row = entry.first_row,
                            .row_count = entry.row_count,
                            .first_position = entry.first_position,
                            .first_page = static_cast<int32_t>(plan.pages.size()),
                            .prompt_length = sequence.prompt_length});
  const auto pages = sequence.lease.pages().first(PagesFor(end));
  plan.pages.insert(plan.pages.end(), pages.begin(), pages.end());
  for (int position = begin; position < end; ++position) {
    // The token after the last known one is to be drawn; those after scored rows are known.
    const bool drawn = position + 1 == sequence.length();
    const bool scored = position >= sequence.scored && position < sequence.scored_rows;
    if (drawn || scored) plan.logit_rows.push_back(plan.rows());
    entry.drawn_count += drawn ? 1 : 0;
    entry.scored_count += scored ? 1 : 0;
    plan.token_ids.push_back(sequence.tokens[position]);
    plan.positions.push_back(position);
    plan.row_sequence.push_back(index);
    plan.roles.push_back(sequence.RoleOf(position));
  }
  batch_.sequences.push_back(entry);
}

absl::Status Scheduler::CheckIntegrity() const {
  int64_t held = 0;
  for (const auto& [name, sequence] : sequences_) {
    const int needed = PagesFor(sequence.computed + sequence.planned_rows);
    const int pages = sequence.lease.page_count();
    if (pages != needed || (pages > 0 && !running_.contains(sequence.place))) {
      return absl::InternalError(absl::StrCat("sequence ", name.sequence, " holds ", pages,
                                              " pages; its records need ", needed));
    }
    held += pages;
  }
  if (held != pages_.used_count()) {
    return absl::InternalError(absl::StrCat(pages_.used_count(), " pages are in use; the ",
                                            sequences_.size(), " sequences hold ", held));
  }
  return pages_.CheckIntegrity();
}

}  // namespace epic::worker
