#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutant.h"

namespace epic::worker {

struct Scheduler::Sequence {
  SequenceSpec spec;
  Place place;
  PageLease lease;
  int computed = 0;     // rows 0 .. computed-1 are in the cache
  int scored = 0;       // logits of rows 0 .. scored-1 were handed out
  int chosen_rows = 0;  // in the batch being chosen

  int length() const { return static_cast<int>(spec.tokens.size()); }
  int remaining() const { return length() - computed; }
};

Scheduler::Scheduler(const SchedulerLimits& limits, PageLedger& pages)
    : limits_(limits), pages_(pages) {
  CHECK_GT(limits.max_num_batched_tokens, 0);
  CHECK_GT(limits.max_num_seqs, 0);
  CHECK_GE(limits.max_logit_rows, limits.max_num_seqs);
}

Scheduler::~Scheduler() = default;

absl::Status Scheduler::Add(SequenceSpec spec) {
  CHECK(!spec.tokens.empty());
  CHECK_GT(spec.length_max, static_cast<int>(spec.tokens.size()));
  CHECK(!sequences_.contains(spec.id)) << spec.id;
  // The last token is never computed.
  const int pages = PagesFor(spec.length_max - 1);
  if (pages > pages_.page_count()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the sequence may grow to ", spec.length_max, " tokens, which need ", pages,
        " KV pages of ", kernels::kPageTokens, " tokens; the worker has ", pages_.page_count()));
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->place = {spec.priority, next_arrival_++};
  sequence->lease = pages_.Open();
  sequence->spec = std::move(spec);
  waiting_.emplace(sequence->place, sequence.get());
  const SequenceId id = sequence->spec.id;
  sequences_.emplace(id, std::move(sequence));
  return absl::OkStatus();
}

void Scheduler::Remove(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  running_.erase(found->second->place);
  waiting_.erase(found->second->place);
  sequences_.erase(found);
}

const Batch& Scheduler::Plan() {
  rows_left_ = limits_.max_num_batched_tokens;
  logits_left_ = limits_.max_logit_rows;
  chosen_.clear();
  ChooseRunning(/*decode=*/true);
  ChooseRunning(/*decode=*/false);
  Admit();
  LeasePages();
  BuildPlan();
  // The first in line is always among the chosen: nobody is let in but with a row to spare, so
  // decode rows leave one for it, and it may take any page.
  CHECK(!batch_.empty() || sequences_.empty());
  return batch_;
}

void Scheduler::Commit() {
  for (const BatchSequence& each : batch_.sequences) {
    const auto found = sequences_.find(each.id);
    if (found == sequences_.end()) continue;
    Sequence& sequence = *found->second;
    CHECK_EQ(sequence.computed, each.first_position);
    sequence.computed += each.row_count;
    sequence.scored = std::max(sequence.scored, sequence.computed);
  }
}

void Scheduler::Append(SequenceId id, int32_t token) {
  Sequence& sequence = *sequences_.at(id);
  CHECK_EQ(sequence.remaining(), 0);
  CHECK_LT(sequence.length(), sequence.spec.length_max);
  sequence.spec.tokens.push_back(token);
}

std::span<const int32_t> Scheduler::tokens(SequenceId id) const {
  return sequences_.at(id)->spec.tokens;
}

void Scheduler::ChooseRunning(bool decode) {
  for (const auto& [place, sequence] : running_) {
    if ((sequence->remaining() == 1) == decode) Choose(*sequence);
  }
}

void Scheduler::Admit() {
  while (!waiting_.empty() && rows_left_ > 0 && running() < limits_.max_num_seqs) {
    Sequence& sequence = *waiting_.begin()->second;
    if (!MayAdmit(sequence)) return;
    waiting_.erase(waiting_.begin());
    running_.emplace(sequence.place, &sequence);
    Choose(sequence);
  }
}

// Whether what is known of all running sequences and of this one has room, with a page each to
// grow: whoever is let in does not push another out, nor is pushed out, at once.
bool Scheduler::MayAdmit(const Sequence& sequence) const {
  if (running_.empty()) return true;
  const auto wanted = [](const Sequence& each) {
    return std::min(PagesFor(each.length()) + 1, PagesFor(each.spec.length_max - 1));
  };
  int64_t pages = wanted(sequence);
  for (const auto& [place, other] : running_) {
    pages += wanted(*other);
  }
  return pages <= pages_.page_count();
}

void Scheduler::Choose(Sequence& sequence) {
  const int rows = RowsWithin(sequence, std::min(sequence.remaining(), rows_left_));
  if (rows == 0) return;
  rows_left_ -= rows;
  logits_left_ -= LogitRows(sequence, rows);
  chosen_.push_back({&sequence, rows});
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
  const int scored = std::max(0, std::min(end, sequence.spec.scored_rows) - first_scored);
  return scored + (end == sequence.length() ? 1 : 0);
}

// In order of place, so that pages go to the first in line whoever was chosen first.
void Scheduler::LeasePages() {
  for (const Choice& choice : chosen_) choice.sequence->chosen_rows = choice.rows;
  std::vector<Sequence*> in_line;
  for (const Choice& choice : chosen_) in_line.push_back(choice.sequence);
  std::ranges::sort(in_line, {}, [](const Sequence* sequence) { return sequence->place; });
  for (Sequence* sequence : in_line) {
    if (sequence->chosen_rows == 0) continue;  // stepped back
    const auto needed = [&] {
      return PagesFor(sequence->computed + sequence->chosen_rows) - sequence->lease.page_count();
    };
    while (needed() > pages_.free_count() && PreemptBehind(sequence->place)) {
    }
    const int pages = sequence->lease.page_count() + std::min(needed(), pages_.free_count());
    sequence->chosen_rows =
        std::min(sequence->chosen_rows, pages * kernels::kPageTokens - sequence->computed);
    CHECK(sequence->lease.Grow(std::max(0, needed())));
  }
}

// Takes the pages of the last in line that holds any, if it stands behind `place`.
bool Scheduler::PreemptBehind(const Place& place) {
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
  for (const Choice& choice : chosen_) {
    const int rows = std::exchange(choice.sequence->chosen_rows, 0);
    if (rows > 0) AppendRows({choice.sequence, rows});
  }
}

void Scheduler::AppendRows(const Choice& choice) {
  const Sequence& sequence = *choice.sequence;
  kernels::StepPlan& plan = batch_.plan;
  const int index = static_cast<int>(plan.sequences.size());
  const int end = sequence.computed + choice.rows;
  BatchSequence entry{.id = sequence.spec.id,
                      .first_row = plan.rows(),
                      .row_count = choice.rows,
                      .first_position = sequence.computed,
                      .first_logit = static_cast<int32_t>(plan.logit_rows.size()),
                      .samples = end == sequence.length()};
  plan.sequences.push_back({.first_row = entry.first_row,
                            .row_count = entry.row_count,
                            .first_position = entry.first_position,
                            .first_page = static_cast<int32_t>(plan.pages.size()),
                            .prompt_length = sequence.spec.prompt_length});
  const auto pages = sequence.lease.pages().first(PagesFor(end));
  plan.pages.insert(plan.pages.end(), pages.begin(), pages.end());
  for (int position = sequence.computed; position < end; ++position) {
    const bool scored = position >= sequence.scored && position < sequence.spec.scored_rows;
    if (scored || position == sequence.length() - 1) plan.logit_rows.push_back(plan.rows());
    plan.token_ids.push_back(sequence.spec.tokens[position]);
    plan.positions.push_back(position);
    plan.row_sequence.push_back(index);
    plan.roles.push_back(position < sequence.spec.prompt_length ? kernels::RowRole::kPrompt
                         : position + 1 < sequence.length()     ? kernels::RowRole::kForced
                                                                : kernels::RowRole::kDecode);
  }
  entry.logit_count = static_cast<int32_t>(plan.logit_rows.size()) - entry.first_logit;
  batch_.sequences.push_back(entry);
}

}  // namespace epic::worker
