// StepPlan: all that one step over a batch needs to know, as flat arrays. Built once by the
// scheduler, read by every layer. Rows of one sequence stand together, positions ascending.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace epic::kernels {

struct SequenceRows {
  int32_t first_row = 0;  // of the plan's rows
  int32_t row_count = 0;  // > 0
  int32_t first_position =
      0;                   // position of first_row; records 0 .. first_position-1 are in the cache
  int32_t first_page = 0;  // where this sequence's page table starts in StepPlan::pages;
                           // it covers positions 0 .. first_position+row_count-1
  int32_t prompt_length = 0;  // positions below it are the prompt's

  int first_rows_of_prompt() const {
    return std::clamp(prompt_length - first_position, 0, row_count);
  }
};

// What a row is computed for.
enum class RowRole : uint8_t {
  kPrompt,  // a token of the prompt
  kForced,  // a generated token that is computed again, or was generated on another rank
  kDecode,  // a token that came last, which its client waits to see followed
  kDraft,   // a guess at a token behind those, which its logits confirm or refuse
};

struct StepPlan {
  std::vector<int32_t> token_ids;     // [rows]
  std::vector<int32_t> positions;     // [rows]
  std::vector<int32_t> row_sequence;  // [rows] index into `sequences`
  std::vector<RowRole> roles;         // [rows]; empty: no caller asks
  std::vector<SequenceRows> sequences;
  std::vector<int32_t> pages;       // page tables, one after another
  std::vector<int32_t> logit_rows;  // rows whose logits are wanted, ascending

  int rows() const { return static_cast<int>(token_ids.size()); }
  // Whether all rows are those of new tokens, which clients wait for.
  bool decodes() const {
    return !roles.empty() && std::ranges::all_of(roles, [](RowRole role) {
      return role == RowRole::kDecode || role == RowRole::kDraft;
    });
  }

  // Rows [begin, end) as a plan of their own, without logit rows. Its page tables are this plan's.
  StepPlan Slice(int begin, int end) const;
};

}  // namespace epic::kernels
