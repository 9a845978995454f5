// NcclApi: all that NcclCollective asks of NCCL and of the CUDA runtime, so that tests can put a
// fake in their place (cluster/transport/testing/fake_nccl.h). One object is one rank's card with
// one stream; what is enqueued there runs in order.
//
// Results and their meaning are NCCL's, with communicators that never block: kInProgress says that
// the call goes on in the background. Until AsyncError says kSuccess nothing else may be asked of
// that communicator, and its stream may not be marked, but for Abort.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cluster/transport/collective.h"

namespace epic::cluster {

// ncclResult_t, number by number.
enum class NcclResult : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

using NcclUniqueId = std::array<char, 128>;
using NcclComm = void*;   // ncclComm_t
using NcclEvent = void*;  // cudaEvent_t

// One thread at a time, but for Abort, Finalize and Destroy, which may wait and have a thread of
// their own.
struct NcclApi {
  virtual ~NcclApi() = default;

  virtual NcclResult GetUniqueId(NcclUniqueId& id) = 0;
  // Sets `comm` in any case but an error. Formed once AsyncError says so, which needs all ranks.
  virtual NcclResult InitRank(NcclComm& comm, int size, const NcclUniqueId& id, int rank) = 0;
  // The state of the communicator: success, in progress, or why it is of no use any more.
  virtual NcclResult AsyncError(NcclComm comm) = 0;

  // Buffers are memory that the card reaches. Enqueued all at once by GroupEnd.
  virtual NcclResult GroupStart() = 0;
  virtual NcclResult Send(NcclComm comm, const std::byte* from, size_t bytes, int peer) = 0;
  virtual NcclResult Receive(NcclComm comm, std::byte* into, size_t bytes, int peer) = 0;
  virtual NcclResult AllReduce(NcclComm comm, Reduction reduction, int64_t* values,
                               size_t count) = 0;
  virtual NcclResult GroupEnd() = 0;

  // Once all that is enqueued has run; then Destroy. Finalize may be in progress.
  virtual NcclResult Finalize(NcclComm comm) = 0;
  virtual NcclResult Destroy(NcclComm comm) = 0;
  // Ends what runs, and frees the communicator: the card touches no buffer any more once it
  // returns. Alone among all calls it may be made at any time, beside another thread's.
  virtual NcclResult Abort(NcclComm comm) = 0;

  // A mark in the stream, reached when all that was enqueued before has run.
  virtual NcclResult Mark(NcclEvent& event) = 0;
  virtual NcclResult Reached(NcclEvent event) = 0;
  virtual void FreeMark(NcclEvent event) = 0;

  // Whether the card reaches what lies there: its own memory, or memory of the host pinned for it.
  virtual bool Reaches(const void* memory) = 0;
  // Pinned memory of the host; null: there is none.
  virtual std::byte* AllocatePinned(size_t bytes) = 0;
  virtual void FreePinned(std::byte* memory) = 0;

  // A text for people about the last error.
  virtual std::string ErrorText(NcclResult result) = 0;
};

}  // namespace epic::cluster
