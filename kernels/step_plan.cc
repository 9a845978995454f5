#include "kernels/step_plan.h"

#include <algorithm>

namespace epic::kernels {

StepPlan StepPlan::Slice(int begin, int end) const {
  StepPlan slice;
  slice.token_ids.assign(token_ids.begin() + begin, token_ids.begin() + end);
  slice.positions.assign(positions.begin() + begin, positions.begin() + end);
  if (!roles.empty()) slice.roles.assign(roles.begin() + begin, roles.begin() + end);
  // Whole, so that first_page means in the slice what it means here.
  slice.pages = pages;
  // A sequence that the cut parts goes on in the slice at a later position, with the same pages.
  for (const SequenceRows& sequence : sequences) {
    const int first = std::max(begin, sequence.first_row);
    const int count = std::min(end, sequence.first_row + sequence.row_count) - first;
    if (count <= 0) continue;
    slice.row_sequence.insert(slice.row_sequence.end(), count,
                              static_cast<int32_t>(slice.sequences.size()));
    slice.sequences.push_back(
        {.first_row = first - begin,
         .row_count = count,
         .first_position = sequence.first_position + first - sequence.first_row,
         .first_page = sequence.first_page,
         .prompt_length = sequence.prompt_length});
  }
  return slice;
}

}  // namespace epic::kernels
