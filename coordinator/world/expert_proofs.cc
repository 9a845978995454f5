#include "coordinator/world/expert_proofs.h"

#include "absl/strings/str_format.h"
#include "base/check.h"

namespace epic::coordinator {

absl::Status ExpertProofs::Check(int rank, int layer, int expert, uint64_t hash) {
  CHECK(layer >= 0 && expert >= 0) << "layer " << layer << " expert " << expert;
  // A rank that gives no hash for the expert proves nothing, and disproves nothing.
  if (hash == 0) return absl::OkStatus();
  const Proof& first = proofs_.try_emplace({layer, expert}, Proof{hash, rank}).first->second;
  if (first.hash == hash) return absl::OkStatus();
  // Rows that two holders answer with different bits would make a sequence depend on who is alive.
  return absl::DataLossError(absl::StrFormat(
      "expert %d of layer %d has content hash %016x here, %016x at rank %d, its first loader",
      expert, layer, hash, first.hash, first.rank));
}

uint64_t ExpertProofs::Find(int layer, int expert) const {
  const auto at = proofs_.find({layer, expert});
  return at == proofs_.end() ? 0 : at->second.hash;
}

}  // namespace epic::coordinator
