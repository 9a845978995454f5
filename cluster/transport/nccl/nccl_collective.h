// NcclCollective: the Collective over NCCL, for ranks with a card each. One object is one rank's
// end of one communicator, which lives for one epoch.
//
// NCCL spreads neither the id that a communicator is formed with nor the news that it has ended: a
// rank whose peer is gone may wait for ever inside a kernel. Both go over the control plane
// (worker/exchange/nccl_epochs.h): the owner is told by `on_abort` when this rank ends the epoch,
// and calls End when another one has.
//
//   NcclCollective collective(api, RealClock(), RealThreads(),
//                             {.rank = 1, .size = 4, .id = id}, {…});
//
// Nothing here waits. Operations that are started while the communicator is being formed, or while
// NCCL is still enqueueing an earlier one, are enqueued by a later Done. Buffers that the card
// reaches (its memory, pinned memory) are used where they lie; others travel through pinned memory
// of this object's own.
//
// An abort runs on a thread of its own, and Done answers with the epoch's error only when it has
// returned: till then the card may still write. If it does not return by the deadline the card is
// stuck and `on_stuck` is called, which ends the process: nothing less frees a stuck kernel.
//
// NCCL does not compare operations: ranks that start others, or of other lengths, wait for ever or
// get wrong bytes.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/env.h"
#include "cluster/transport/collective.h"
#include "cluster/transport/nccl/nccl_api.h"

namespace epic::cluster {

struct NcclOptions {
  int rank = 0;
  int size = 1;
  NcclUniqueId id = {};  // the same on all ranks, made by one of them
  absl::Duration abort_deadline = absl::Seconds(10);
};

struct NcclHandlers {
  // This rank has ended the epoch, in these words ("rank 2: …"). Within Done, a Start or Abort.
  std::function<void(const std::string& reason)> on_abort;
  // Does not return, but in tests.
  std::function<void(const std::string& why)> on_stuck;
};

// One thread, which is also the one that uses `api`.
class NcclCollective : public Collective {
 public:
  // All outlive this. Begins to form the communicator.
  NcclCollective(NcclApi& api, Clock& clock, Threads& threads, const NcclOptions& options,
                 NcclHandlers handlers);
  // Waits, at most the deadline, for the other ranks to do the same; where operations are open or
  // the communicator is not formed, for the end of an abort.
  ~NcclCollective() override;

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  Operation StartAllToAll(std::span<const std::span<const std::byte>> send,
                          std::span<const std::span<std::byte>> receive) override;
  Operation StartAllReduce(Reduction reduction, std::span<int64_t> values) override;
  absl::StatusOr<bool> Done(Operation operation) override;
  void Abort(const std::string& reason) override;

  // Another rank, or the coordinator, has ended the epoch, in these words.
  void End(const std::string& reason);
  // Whether the epoch is over and the card touches no buffer any more.
  bool Ended();

 private:
  // Pinned memory, kept for the next operation that needs as much.
  struct Block {
    std::byte* memory = nullptr;
    size_t bytes = 0;
  };
  struct Transfer {
    int peer = 0;
    std::byte* at = nullptr;     // where the card reads or writes
    std::byte* owner = nullptr;  // where it belongs; null: there
    size_t bytes = 0;
  };
  struct Open {
    std::vector<Transfer> sends, receives;
    std::span<int64_t> values;  // of an all-reduce; its one receive is where they are reduced
    Reduction reduction = Reduction::kMin;
    bool reduces = false;
    Block staging;
    NcclEvent event = nullptr;  // once NCCL has enqueued it
  };

  Operation Queue(Open open);
  Block TakeBlock(size_t bytes);
  // Takes every step that NCCL allows now.
  void Advance();
  void Launch(Open& open);
  // The operation is enqueued. The mark after it tells when it has run.
  void MarkLaunched();
  void Complete(const Open& open);
  bool Check(const char* what, NcclResult result);
  void StartAbort();
  void StartEnd(std::function<void()> body);

  NcclApi& api_;
  Clock& clock_;
  Threads& threads_;
  const NcclOptions options_;
  const NcclHandlers handlers_;
  absl::Status status_;
  NcclComm comm_ = nullptr;
  Operation next_ = 0;
  std::map<Operation, Open> open_;
  std::deque<Operation> queue_;  // not given to NCCL; the first may be on its way
  bool launching_ = false;
  std::vector<Block> free_blocks_;
  std::atomic<bool> helper_done_ = true;
  std::unique_ptr<Threads::Handle> helper_;
  absl::Time deadline_ = absl::InfiniteFuture();
};

}  // namespace epic::cluster
