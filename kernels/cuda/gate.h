// The router in one launch: scores, groups, the k best experts, their weights, the physical slot of
// each expert that serves the row, and how many rows each slot gets. A warp serves a row, with the
// same bits as GateChooser (kernels/gate_choice.h).
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/limits.h"

namespace epic::kernels::cuda {

// Pointers are to device memory. The shape's limits are kGate… of limits.h; groups divide the
// experts.
struct GateArguments {
  GateShape shape;
  int rows = 0;
  const float* logits = nullptr;  // [rows, experts]
  const float* bias = nullptr;    // [experts], or null
  // Expert e is held by the slots replica_slots[replica_begin[e]] .. [replica_begin[e + 1] − 1], at
  // least one; row r takes the (r mod count)-th. Null: slot e.
  const int32_t* replica_begin = nullptr;  // [experts + 1]
  const int32_t* replica_slots = nullptr;
  int32_t* experts = nullptr;  // [rows, top_k], ascending
  float* weights = nullptr;    // [rows, top_k]
  uint8_t* faults =
      nullptr;  // [rows]: 1 where a score is NaN; then experts 0 .. top_k−1, weights 0
  int32_t* slots = nullptr;      // [rows, top_k], or null
  int32_t* slot_rows = nullptr;  // [slots], added to; or null
};

void ChooseExperts(Stream stream, const GateArguments& arguments);

}  // namespace epic::kernels::cuda
