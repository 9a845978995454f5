// The table of the numbers that are told of a rank. /metrics, /ready and the operators' state
// (v1::RankState) read their numbers here, so a new number is one row of this table, beside the
// place that measures it and its field of RankStatus.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "coordinator/inference.h"
#include "proto/epic/v1/cluster.pb.h"

namespace epic::coordinator {

enum class ColumnKind { kGauge, kCounter };  // a counter never falls while the rank lives
enum class ColumnUnit { kCount, kBytes, kSeconds };

struct RankColumn {
  const char* name;    // in /ready; a field of v1::RankState has the same name, if there is one
  const char* metric;  // in /metrics; null: not told there
  const char* help;
  ColumnKind kind;
  ColumnUnit unit;
  double (*read)(const RankStatus& rank);

  // Counts and bytes are whole numbers.
  bool whole() const { return unit != ColumnUnit::kSeconds; }
};

// The rows, in the order in which pages show them. Any thread.
absl::Span<const RankColumn> RankColumns();

// The rank as operators are told of it: its texts and roles, and each column that has a field.
v1::RankState RankStateFrom(const RankStatus& rank);

}  // namespace epic::coordinator
