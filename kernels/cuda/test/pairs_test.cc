#include "kernels/cuda/pairs.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cuda/argmax.h"
#include "kernels/cuda/test/harness.h"
#include "kernels/number.h"
#include "kernels/reference/reference_backend.h"

namespace epic::kernels::cuda {
namespace {

EPIC_KERNEL_TEST(PlacesFollowTheOrderOfPairs) {
  Random random(1);
  constexpr int kPairs = 75, kGroups = 4, kFirstSlot = 3, kPlaces = 12;
  std::vector<int32_t> slots, place(kPairs, -9), group_rows(kGroups);
  for (int p = 0; p < kPairs; ++p) slots.push_back(random.Integer(0, 9));
  for (int p = 0; p < kPairs; ++p) {
    const int group = slots[p] - kFirstSlot;
    if (group < 0 || group >= kGroups) continue;
    place[p] = group_rows[group] < kPlaces ? group * kPlaces + group_rows[group]++ : -1;
  }
  const Buffer<int32_t> slots_in(slots);
  const Buffer<int32_t> place_out(std::vector<int32_t>(kPairs, -9));
  const Buffer<int32_t> rows_out(std::vector<int32_t>(kGroups, -9));
  PlacePairs({}, {.pairs = kPairs,
                  .slots = slots_in.data(),
                  .first_slot = kFirstSlot,
                  .groups = kGroups,
                  .places = kPlaces,
                  .place = place_out.data(),
                  .group_rows = rows_out.data()});
  ExpectSame(place_out.Read(), place, "place");
  ExpectSame(rows_out.Read(), group_rows, "group_rows");
}

EPIC_KERNEL_TEST(RowsWithoutScalesMoveFromAnyRowToAnyPlace) {
  constexpr int kRows = 4, kColumns = 48;
  const std::vector<int32_t> row = {3, 0, 3}, place = {1, 0, 3};
  std::vector<uint8_t> rows(kRows * kColumns), moved(kRows * kColumns, 0x55);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint8_t>(i * 11);
  std::vector<uint8_t> gathered = moved;
  for (int p = 0; p < 3; ++p) {
    std::copy_n(rows.begin() + row[p] * kColumns, kColumns, moved.begin() + place[p] * kColumns);
    std::copy_n(rows.begin() + row[p] * kColumns, kColumns, gathered.begin() + p * kColumns);
  }
  const Buffer<int32_t> row_in(row), place_in(place);
  const Buffer<uint8_t> rows_in(rows);
  for (const bool places : {true, false}) {
    const Buffer<uint8_t> out(std::vector<uint8_t>(kRows * kColumns, 0x55));
    PackRows({}, {.pairs = 3,
                  .columns = kColumns,
                  .row = row_in.data(),
                  .place = places ? place_in.data() : nullptr,
                  .codes = rows_in.data(),
                  .packed_codes = out.data()});
    ExpectSame(out.Read(), places ? moved : gathered, "moved");
  }
}

EPIC_KERNEL_TEST(RowsArePackedWithTheirScales) {
  constexpr int kRows = 5, kTopK = 2, kColumns = 272, kGroups = 3, kPlaces = 4, kBlocks = 3;
  const std::vector<int32_t> place = {0, 5, 1, -1, 8, 6, 2, 11, -1, 7};
  std::vector<uint8_t> codes(kRows * kColumns), packed(kGroups * kPlaces * kColumns, 0x55);
  std::vector<float> scales(kBlocks * 8), packed_scales(kGroups * kBlocks * 4, -7);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 7);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(i);
  const Buffer<uint8_t> packed_out(packed);
  const Buffer<float> scales_out(packed_scales);
  for (int p = 0; p < kRows * kTopK; ++p) {
    if (place[p] < 0) continue;
    std::copy_n(codes.begin() + p / kTopK * kColumns, kColumns,
                packed.begin() + place[p] * kColumns);
    for (int b = 0; b < kBlocks; ++b) {
      packed_scales[(place[p] / kPlaces * kBlocks + b) * 4 + place[p] % kPlaces] =
          scales[b * 8 + p / kTopK];
    }
  }
  const Buffer<int32_t> place_in(place);
  const Buffer<uint8_t> codes_in(codes);
  const Buffer<float> scales_in(scales);
  PackRows({}, {.pairs = kRows * kTopK,
                .top_k = kTopK,
                .columns = kColumns,
                .places = kPlaces,
                .place = place_in.data(),
                .codes = codes_in.data(),
                .scales = scales_in.data(),
                .scale_stride = 8,
                .packed_codes = packed_out.data(),
                .packed_scales = scales_out.data(),
                .packed_scale_stride = 4});
  ExpectSame(packed_out.Read(), packed, "codes");
  ExpectSame(scales_out.Read(), packed_scales, "scales");
}

EPIC_KERNEL_TEST(AnswersAreSummedAsTheReferenceBackendDoes) {
  Random random(2);
  constexpr int kRows = 3, kTopK = 4, kColumns = 300, kPlaces = 20;
  std::vector<BF16> shared(kRows * kColumns), answers(kPlaces * kColumns);
  std::vector<float> weights(kRows * kTopK), residual(kRows * kColumns);
  std::vector<int32_t> place;
  for (BF16& value : shared) value = ToBF16(random.Real(3));
  for (BF16& value : answers) value = ToBF16(random.Real(3));
  for (float& value : weights) value = random.Real(1);
  for (float& value : residual) value = random.Real(3);
  for (int p = 0; p < kRows * kTopK; ++p) place.push_back(p * 7 % kPlaces);
  for (const bool with_shared : {true, false}) {
    std::vector<float> expected = residual;
    std::vector<BF16> gathered;
    for (const int32_t from : place) {
      gathered.insert(gathered.end(), answers.begin() + from * kColumns,
                      answers.begin() + (from + 1) * kColumns);
    }
    MakeReferenceBackend({})->Combine(
        {DType::kBF16, kRows, kColumns, with_shared ? shared.data() : nullptr},
        {DType::kBF16, kRows * kTopK, kColumns, gathered.data()},
        {DType::kF32, kRows, kTopK, weights.data()},
        {DType::kF32, kRows, kColumns, expected.data()});
    const Buffer<BF16> shared_in(shared), answers_in(answers);
    const Buffer<float> weights_in(weights), residual_out(residual);
    const Buffer<int32_t> place_in(place);
    CombineRows({}, {.rows = kRows,
                     .top_k = kTopK,
                     .columns = kColumns,
                     .shared = with_shared ? shared_in.data() : nullptr,
                     .answers = answers_in.data(),
                     .place = place_in.data(),
                     .weights = weights_in.data(),
                     .residual = residual_out.data()});
    ExpectSame(residual_out.Read(), expected, "residual");
  }
}

EPIC_KERNEL_TEST(ArgmaxTakesTheLowestOfTheLargestBelowTheLimit) {
  Random random(3);
  constexpr int kRows = 40, kColumns = 1500, kLimit = 1400;
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> logits;
  std::vector<int32_t> expected;
  for (int r = 0; r < kRows; ++r) {
    std::vector<float> row(kColumns);
    for (float& value : row) value = static_cast<float>(random.Integer(-30, r));
    row[kLimit] = 1000;
    if (r % 3 == 0) row[random.Integer(0, kLimit - 1)] = row[random.Integer(0, kLimit - 1)] = 99;
    if (r == 1) std::fill(row.begin(), row.end(), -infinity);
    expected.push_back(
        static_cast<int32_t>(std::max_element(row.begin(), row.begin() + kLimit) - row.begin()));
    logits.insert(logits.end(), row.begin(), row.end());
  }
  const Buffer<float> logits_in(logits);
  const Buffer<int32_t> ids(std::vector<int32_t>(kRows, -1));
  Argmax({}, {.rows = kRows,
              .columns = kColumns,
              .limit = kLimit,
              .logits = logits_in.data(),
              .ids = ids.data()});
  ExpectSame(ids.Read(), expected, "ids");
}

}  // namespace
}  // namespace epic::kernels::cuda
