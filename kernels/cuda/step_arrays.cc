#include "kernels/cuda/step_arrays.h"

namespace epic::kernels::cuda {

template <typename T>
T* StepArrays::Upload(Scratch& to, const std::vector<T>& values) {
  auto* at = to.Get<T>(static_cast<int64_t>(values.size()));
  runtime_.Upload(at, values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
  return at;
}

void StepArrays::Begin(const StepPlan& plan, int rows, const Rope& rope) {
  // What every layer's records share: where in a slab each row's stands.
  std::vector<int32_t> records;
  for (int row = 0; row < plan.rows(); ++row) {
    const int32_t position = plan.positions[row];
    const int32_t first_page = plan.sequences[plan.row_sequence[row]].first_page;
    const int32_t page = plan.pages[first_page + position / kPageTokens];
    records.push_back(page * kPageTokens + position % kPageTokens);
  }
  struct Array {
    const std::vector<int32_t>* values;
    const int32_t** to;
    int32_t padding;
  };
  const Array arrays[] = {{&plan.token_ids, &token_ids, 0},
                          {&plan.positions, &positions, 0},
                          // A row that fills a bucket must leave no record: its place belongs to
                          // some sequence.
                          {&records, &record_index, -1},
                          {&plan.logit_rows, &logit_rows, 0}};
  // One upload for all of them: a copy costs microseconds whatever its size.
  std::vector<int32_t> all;
  for (const Array& array : arrays) {
    all.insert(all.end(), array.values->begin(), array.values->end());
    all.insert(all.end(), rows - array.values->size(), array.padding);
  }
  const int32_t* at = Upload(integers_, all);
  for (const Array& array : arrays) {
    *array.to = at;
    at += rows;
  }
  // Page tables grow as sequences do, so they lie apart: the arrays above keep their places.
  pages = Upload(pages_, plan.pages);

  table_.Fill(plan, rope);
  const auto angles = int64_t{rows} * table_.pairs;
  std::vector<float> cos_and_sin(table_.cos);
  cos_and_sin.resize(angles);
  cos_and_sin.insert(cos_and_sin.end(), table_.sin.begin(), table_.sin.end());
  cos_and_sin.resize(2 * angles);
  cos_ = Upload(angles_, cos_and_sin);
  sin_ = cos_ + angles;
  // The last step's tiles are void. MlaFor makes new ones when a layer first asks, since only the
  // layer knows its heads.
  mla_heads_ = 0;
}

StepArrays::Mla StepArrays::Mla::ForAnyPlan(int rows, int heads) const {
  Mla any = *this;
  // Most tiles: every row is of a sequence of its own. With splits to merge, each of them has 64
  // partial rows, so units beyond the tiles are at most as many as these rows allow.
  const bool merges = partial_rows > 0;
  any.tile_count = rows * ((heads + kMlaTileQueries - 1) / kMlaTileQueries);
  any.unit_count = any.tile_count + (merges ? kPartialRowsMax / kMlaTileQueries : 0);
  any.partial_rows = merges ? kPartialRowsMax : 0;
  return any;
}

std::span<const StepArrays::Mla> StepArrays::MlaFor(const StepPlan& plan, int heads) {
  if (mla_heads_ == heads) return mla_;
  mla_heads_ = heads;
  mla_.clear();
  std::vector<MlaTile> tiles;
  std::vector<MlaUnit> units;
  std::vector<int32_t> counts;
  for (const MlaPlan& batch : BatchesOf(PlanMla(plan, heads, kSplitTokens), kPartialRowsMax)) {
    mla_.push_back({.tile_count = static_cast<int>(batch.tiles.size()),
                    .unit_count = static_cast<int>(batch.units.size()),
                    .partial_rows = batch.partial_rows});
    tiles.insert(tiles.end(), batch.tiles.begin(), batch.tiles.end());
    units.insert(units.end(), batch.units.begin(), batch.units.end());
    counts.insert(counts.end(), {mla_.back().tile_count, mla_.back().unit_count});
  }
  const MlaTile* tile = Upload(tiles_, tiles);
  const MlaUnit* unit = Upload(units_, units);
  const int32_t* count = Upload(counts_, counts);
  for (Mla& mla : mla_) {
    mla.tiles = tile;
    mla.units = unit;
    mla.counts = count;
    tile += mla.tile_count;
    unit += mla.unit_count;
    count += 2;
  }
  return mla_;
}

}  // namespace epic::kernels::cuda
