// Rows to experts and back: the pairs (row, choice) that the gate made, their places in the masked
// layout of block_gemm.h, and the sum of what the experts answer.
//
// The backend packs with tables that the host made (experts.h). PlacePairs makes such places on the
// device, for an exchange that leaves the host out.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/launch.h"
#include "kernels/tensor.h"

namespace epic::kernels::cuda {

// Pair p = row·top_k + j names slot slots[p]. Its place is slot·places + its number among the
// slot's pairs, in order of p; −1 where the slot is not of [first_slot, first_slot + groups) or has
// no place left (which the caller rules out by `places`).
struct PlaceArguments {
  int pairs = 0;
  const int32_t* slots = nullptr;  // [pairs]
  int first_slot = 0;              // of this rank
  int groups = 0;
  int places = 0;                 // per group
  int32_t* place = nullptr;       // [pairs]; only those of this rank are written
  int32_t* group_rows = nullptr;  // [groups]
};
void PlacePairs(Stream stream, const PlaceArguments& arguments);

// Copies each pair's row to its place: codes with their scales, or any bytes without scales. A pair
// with a negative place is passed over.
struct PackArguments {
  int pairs = 0;
  int top_k = 0;
  int columns = 0;  // bytes of a row, a multiple of 16
  int places = 0;
  const int32_t* row = nullptr;    // [pairs]; null: p / top_k
  const int32_t* place = nullptr;  // [pairs]; null: p
  const uint8_t* codes = nullptr;  // [rows, columns], 16-byte aligned
  const float* scales = nullptr;   // [ceil(columns/128), scale_stride], or null
  int scale_stride = 0;
  uint8_t* packed_codes = nullptr;  // [groups·places, columns], 16-byte aligned
  float* packed_scales = nullptr;   // [groups, ceil(columns/128), packed_scale_stride]
  int packed_scale_stride = 0;
};
void PackRows(Stream stream, const PackArguments& arguments);

// residual[t] += (shared[t] + Σⱼ weights[t, j]·answers[place[t·top_k + j]]), j ascending, FP32,
// then one add: Backend::Combine with its rows fetched from where they lie.
struct CombineArguments {
  int rows = 0;
  int top_k = 0;
  int columns = 0;
  const BF16* shared = nullptr;    // [rows, columns], or null
  const BF16* answers = nullptr;   // [places, columns]
  const int32_t* place = nullptr;  // [rows, top_k], all ≥ 0; null: p
  const float* weights = nullptr;  // [rows, top_k]
  float* residual = nullptr;       // [rows, columns]
};
void CombineRows(Stream stream, const CombineArguments& arguments);

}  // namespace epic::kernels::cuda
