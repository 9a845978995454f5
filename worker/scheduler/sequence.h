// Sequence: all that a rank knows of one submission of a sequence, in one record. The Scheduler
// owns the records and alone moves them on. The Engine reads them, and keeps the scores of a prompt
// in them until it reports them.
#pragma once

#include <compare>
#include <cstdint>
#include <ostream>
#include <utility>
#include <vector>

#include "kernels/step_plan.h"
#include "model/sampler.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/kv/page_ledger.h"

namespace epic::worker {

// What coordinator and rank call a sequence: its number, and which submission of it this is. Each
// submission is a sequence of its own; a higher attempt replaces a lower one.
struct SequenceName {
  uint64_t sequence = 0;
  uint32_t attempt = 0;

  auto operator<=>(const SequenceName&) const = default;
};

inline std::ostream& operator<<(std::ostream& out, const SequenceName& name) {
  return out << name.sequence << "." << name.attempt;
}

// Place in line: priority (lower values go first), then arrival. No two are ever equal.
using PlaceInLine = std::pair<int, uint64_t>;

struct Sequence {
  // What was asked for. It stays as it is.
  SequenceName name;
  int prompt_length = 0;  // tokens below it are the prompt's
  int length_max = 0;     // of prompt and generated tokens together; > tokens.size() at first
  int scored_rows = 0;    // the logits of rows 0 .. scored_rows-1 are wanted too; < tokens.size()
  int priority = 0;       // lower values go first
  v1::StartSequence request;  // for the Engine; its prompt and forced tokens are in `tokens` alone
  model::SamplingParams sampling;

  // What is known and done.
  std::vector<int32_t> tokens;  // prompt, forced and generated ones; at least one
  int computed = 0;             // records of tokens 0 .. computed-1 are in the lease's pages
  int scored = 0;               // the logits of rows 0 .. scored-1 were handed out
  int cached_tokens = 0;  // of the prompt, whose records were found and not computed
  PageLease lease;        // between steps: just the pages that `computed` records need

  // The Scheduler's notes.
  PlaceInLine place;
  int accepted = 1;      // tokens that came last, together: the rows that its next step owes
  int chosen_rows = 0;   // of the batch being chosen
  int planned_rows = 0;  // of the batch being computed

  // The Engine's notes.
  bool prompt_reported = false;
  std::vector<v1::SequenceToken> prompt_scores;  // of prompt tokens 1 ..

  int length() const { return static_cast<int>(tokens.size()); }
  // Rows to compute until the next token can be drawn.
  int remaining() const { return length() - computed; }
  // Whether its next rows are those of new tokens alone. Else a prompt is left, or records that are
  // computed again.
  bool decodes() const { return remaining() <= accepted; }
  kernels::RowRole RoleOf(int position) const {
    if (position < prompt_length) return kernels::RowRole::kPrompt;
    const bool came_last = position >= length() - accepted;
    return came_last ? kernels::RowRole::kDecode : kernels::RowRole::kForced;
  }
};

}  // namespace epic::worker
