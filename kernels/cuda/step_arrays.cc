#include "kernels/cuda/step_arrays.h"

#include <utility>

namespace epic::kernels::cuda {

void StepArrays::Begin(const StepPlan& plan, const Rope& rope) {
  std::vector<int32_t> records;
  for (int row = 0; row < plan.rows(); ++row) {
    const int32_t position = plan.positions[row];
    const int32_t first_page = plan.sequences[plan.row_sequence[row]].first_page;
    const int32_t page = plan.pages[first_page + position / kPageTokens];
    records.push_back(page * kPageTokens + position % kPageTokens);
  }
  const std::pair<const std::vector<int32_t>*, const int32_t**> arrays[] = {
      {&plan.token_ids, &token_ids},
      {&plan.positions, &positions},
      {&plan.pages, &pages},
      {&records, &record_index},
      {&plan.logit_rows, &logit_rows}};
  std::vector<int32_t> all;
  for (const auto& [values, to] : arrays) all.insert(all.end(), values->begin(), values->end());
  auto* at = integers_.Get<int32_t>(static_cast<int64_t>(all.size()));
  runtime_.Upload(at, all.data(), static_cast<int64_t>(all.size() * sizeof(int32_t)));
  for (const auto& [values, to] : arrays) {
    *to = at;
    at += values->size();
  }
  table_.Fill(plan, rope);
  const auto angles = static_cast<int64_t>(table_.cos.size());
  auto* cos = angles_.Get<float>(2 * angles);
  runtime_.Upload(cos, table_.cos.data(), angles * int64_t{sizeof(float)});
  runtime_.Upload(cos + angles, table_.sin.data(), angles * int64_t{sizeof(float)});
  cos_ = cos;
  sin_ = cos + angles;
  mla_heads_ = 0;
}

std::span<const StepArrays::Mla> StepArrays::MlaFor(const StepPlan& plan, int heads) {
  if (mla_heads_ == heads) return mla_;
  mla_heads_ = heads;
  mla_.clear();
  const MlaPlan whole = PlanMla(plan, heads, kSplitTokens);
  auto* tiles = tiles_.Get<MlaTile>(static_cast<int64_t>(whole.tiles.size()));
  auto* units = units_.Get<MlaUnit>(static_cast<int64_t>(whole.units.size()));
  for (MlaPlan& batch : BatchesOf(whole, kPartialRowsMax)) {
    const auto tile_count = static_cast<int64_t>(batch.tiles.size());
    const auto unit_count = static_cast<int64_t>(batch.units.size());
    runtime_.Upload(tiles, batch.tiles.data(), tile_count * int64_t{sizeof(MlaTile)});
    runtime_.Upload(units, batch.units.data(), unit_count * int64_t{sizeof(MlaUnit)});
    mla_.push_back({std::move(batch), tiles, units});
    tiles += tile_count;
    units += unit_count;
  }
  return mla_;
}

}  // namespace epic::kernels::cuda
