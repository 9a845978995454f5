// FakeNccl: NCCL and its cards within one process, with the semantics that NcclCollective builds
// on. What NCCL leaves open is drawn from a seed, and what it forbids is a failed CHECK:
//
// - A communicator is formed when all its ranks have come, and finalized when all are; a group is
// enqueued some polls after its
//   end. Meanwhile AsyncError says kInProgress, and any other call on the communicator is an error.
// - A stream runs its groups in order. A send is done when its receive runs too, in whatever order
//   of peers: nothing is buffered. An all-reduce runs when all ranks have come to it.
// - Buffers must be memory that the card reaches, and are read and written while a group runs, by
//   whichever thread. After Abort has returned none is touched.
// - A dead peer is either noticed (kRemoteError on all others) or not: then they wait for ever.
//   Operations that do not fit wait for ever too.
// - Abort may hang.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/sim_loop.h"
#include "cluster/transport/nccl/nccl_api.h"

namespace epic::cluster {

// Thread-safe; its cards as NcclApi says.
class FakeNccl {
 public:
  explicit FakeNccl(int cards, uint64_t seed = 1);
  ~FakeNccl();

  NcclApi& card(int index);

  // The process of the card is gone: its communicators take part in nothing any more.
  void Kill(int card, bool noticed);
  // The next call of this name on the card gives `result`.
  void FailNext(int card, const std::string& call, NcclResult result);
  // While set no Abort returns.
  std::atomic<bool> aborts_hang = false;
  // Memory that the card reaches, as its own.
  void AddDeviceMemory(const std::byte* memory, size_t bytes);

  // What has not been given back: communicators, marks and pinned blocks.
  int held_count() const;
  int pinned_count() const;

 private:
  class Card;
  struct Transfer {
    std::byte* at = nullptr;
    size_t bytes = 0;
    int peer = 0;
    bool sends = false;
    bool done = false;
  };
  struct Group {
    std::vector<Transfer> transfers;
    std::vector<int64_t*> reduced;  // at most one
    Reduction reduction = Reduction::kMin;
    size_t count = 0;
    bool done = false;
  };
  struct Comm {
    NcclUniqueId id = {};
    int card = 0;
    int rank = 0;
    int size = 0;
    int polls_left = 0;           // until the last group is enqueued
    std::deque<Group> stream;     // enqueued, not done
    std::deque<Group> launching;  // ended, not enqueued
    uint64_t enqueued = 0, run = 0;
    NcclResult error = NcclResult::kSuccess;
    bool formed = false;
    bool finalized = false;
    bool over = false;  // killed, or being aborted
  };
  struct Mark {
    Comm* comm = nullptr;
    uint64_t at = 0;
  };

  void Form(const NcclUniqueId& id, int size) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Finalized(const Comm& comm) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Comm* Peer(const Comm& comm, int rank) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool RunGroup(Comm& comm) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool RunReduce(Comm& comm) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool RunTransfer(Comm& comm, Transfer& send) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Reaches(const std::byte* memory, size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::vector<std::unique_ptr<Card>> cards_;  // made with the fake, never changed
  mutable absl::Mutex mutex_;
  SeededRandom random_ ABSL_GUARDED_BY(mutex_);
  std::map<NcclComm, std::unique_ptr<Comm>> comms_ ABSL_GUARDED_BY(mutex_);
  std::map<NcclEvent, std::unique_ptr<Mark>> marks_ ABSL_GUARDED_BY(mutex_);
  std::map<const std::byte*, std::unique_ptr<std::byte[]>> pinned_ ABSL_GUARDED_BY(mutex_);
  // What the cards reach, by first byte.
  std::map<const std::byte*, size_t> reached_ ABSL_GUARDED_BY(mutex_);
  std::map<std::pair<int, std::string>, NcclResult> failures_ ABSL_GUARDED_BY(mutex_);
  int ids_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace epic::cluster
