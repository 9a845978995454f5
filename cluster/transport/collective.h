// Collective: the wires between ranks that step together (protocol.md §7): all-to-all of bytes, a
// small all-reduce of integers, abort. One object is one rank's end of one *epoch*, the life of one
// communicator.
//
//   Collective::Operation sums = collective.StartAllReduce(Reduction::kSum, values);
//   while (true) {
//     ASSIGN_OR_RETURN(const bool done, collective.Done(sums));
//     if (done) break;
//   }
//
// Lock-step: every rank starts the same operations in the same order, with empty parts where it has
// nothing to send; the n-th operation of each rank is the same one. Any number may be open at a
// time. Starting never waits; Done moves what is open on (no other thread does), so whoever waits
// calls it again and again.
//
// Failures end the epoch, not a part of it: when a rank aborts, dies, or starts an operation that
// does not fit the others', every open and later operation of every rank ends with an error that
// names the rank and says why. The next epoch is a new object; what had begun is done again there.
// Where the wires cannot outlive a failure (MPI) the process ends instead.
//
// Implementations: threads (ranks of one process), mpi (a static world under mpirun or Slurm), nccl
// (a card each; an epoch that the coordinator forms). One thread at a time; each rank's end has a
// thread of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace epic::cluster {

enum class Reduction : uint8_t { kMin, kMax, kSum };

class Collective {
 public:
  // Number of an operation within the epoch, from 0.
  using Operation = uint64_t;

  virtual ~Collective() = default;

  // Rank numbers of an epoch are 0 .. size-1; the coordinator may know the process by another.
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // send[r], [size], goes to rank r (this rank included) and arrives in its receive[this rank],
  // which is as long: both ends know the length. What the spans name (the arrays of spans are read
  // within the call) stays where it is until Done says true, unchanged if sent, untouched if
  // received; after an error it may be freed. Over NCCL it may be memory of the card.
  virtual Operation StartAllToAll(std::span<const std::span<const std::byte>> send,
                                  std::span<const std::span<std::byte>> receive) = 0;
  // Replaces values[i] by the minimum, maximum or sum of all ranks' values[i]; the same count on
  // all ranks. Integers alone, so that the order of ranks changes nothing.
  virtual Operation StartAllReduce(Reduction reduction, std::span<int64_t> values) = 0;

  // True once the operation is complete on this rank; never waits. Each operation is asked about
  // until it is. Aborted, naming the rank and its reason, when the epoch has ended.
  virtual absl::StatusOr<bool> Done(Operation operation) = 0;

  // Ends the epoch for all ranks. The first abort's reason is what all hear; later ones change
  // nothing. Where the process ends (MPI) it does not return.
  virtual void Abort(const std::string& reason) = 0;
};

}  // namespace epic::cluster
