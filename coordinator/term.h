// The term: the number of one life of the coordinator. Workers compare maps of experts by term
// first (cluster/placement/expert_map.h), so a later life must have a higher one.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/storage.h"

namespace epic::coordinator {

// The term of a life that keeps no state: the microseconds of wall-clock time. It is higher than
// that of each earlier life, unless the clock of the machine was set back in between.
uint64_t TermOfClock(absl::Time now);

// The term of a life that keeps its state in the folder: one more than the highest that the folder
// has seen. It stands in the folder's file TERM before this returns. No crash, and no full disk,
// makes terms go back. DataLoss, naming the file, if the file holds no term; errors of the storage
// name their file.
absl::StatusOr<uint64_t> NextTerm(Storage& storage, const std::string& state_dir);

}  // namespace epic::coordinator
