// The experts that this rank holds, of one set of weights. The parts that serve rows see an
// ExpertSet; the parts that fill slots see ExpertSlots. LoadedExperts (loaded_experts.h) packs
// experts from the checkpoint; simulations put an order-sensitive hash in their place.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/weights_id.h"
#include "kernels/backend.h"

namespace epic::worker {

struct ExpertName {
  int layer = 0;
  int expert = 0;
  cluster::WeightsId weights = cluster::WeightsId::kFirst;

  auto operator<=>(const ExpertName&) const = default;
};

// One thread, the rank's loop.
class ExpertSet {
 public:
  virtual ~ExpertSet() = default;
  // Whether the expert is ready: in memory, touched in full and proved.
  virtual bool Holds(int layer, int expert) const = 0;
  // out BF16 [pairs.size(), hidden]: expert pairs[i].expert applied to rows[pairs[i].row], rows
  // BF16 [T, hidden]. All named experts are held. A row's answer depends on that row and expert
  // alone.
  virtual void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
                       kernels::Tensor out) = 0;
};

// The experts that the coordinator wants a rank to hold (PlaceExperts).
struct ExpertOrder {
  uint64_t order = 0;
  // All of it, with the proof that another holder gave (0: none is known).
  std::map<ExpertName, uint64_t> wanted;
};

// The outcome of an order.
struct ExpertOutcome {
  uint64_t order = 0;
  absl::Status status;                    // not OK: what was loaded before stays
  std::map<ExpertName, uint64_t> proofs;  // of all that is held now and was wanted
  int64_t loaded_bytes = 0;               // of the checkpoint, for this order
  absl::Duration duration;
};

// One thread, the rank's loop.
class ExpertSlots : public ExpertSet {
 public:
  // Drops what is held and not wanted, at once (dropping is always safe: NOT_HERE); the rest is
  // loaded by Advance. Takes the place of an unfinished order.
  virtual void Order(ExpertOrder order) = 0;
  virtual bool loading() const = 0;
  // Loads one expert. The outcome, once the order is done or failed: ResourceExhausted for want of
  // slots, InvalidArgument for an expert that is not in the model or cannot be loaded, DataLoss if
  // its proof is not the one that was given.
  virtual std::optional<ExpertOutcome> Advance() = 0;

  // How many experts there is room for.
  virtual int slots() const = 0;
  // The bytes of the checkpoint that the present order has read, and that it reads in all.
  virtual int64_t order_bytes() const = 0;
  virtual int64_t order_total_bytes() const = 0;
};

}  // namespace epic::worker
