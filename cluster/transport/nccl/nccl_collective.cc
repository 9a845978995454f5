#include "cluster/transport/nccl/nccl_collective.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"

namespace epic::cluster {
namespace {

// As the card's own allocations are aligned. Blocks are powers of two from kBlockBytesMin, so that
// one fits the next operation of about the same size.
constexpr size_t kAlignment = 256;
constexpr size_t kBlockBytesMin = 64 << 10;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

NcclCollective::NcclCollective(NcclApi& api, Clock& clock, Threads& threads,
                               const NcclOptions& options, NcclHandlers handlers)
    : api_(api),
      clock_(clock),
      threads_(threads),
      options_(options),
      handlers_(std::move(handlers)) {
  const NcclResult result = api_.InitRank(comm_, options_.size, options_.id, options_.rank);
  // The communicator is formed while the loop goes on; operations wait in the queue.
  if (result != NcclResult::kInProgress) Check("ncclCommInitRankConfig", result);
}

NcclCollective::~NcclCollective() {
  // Finalize waits for what was enqueued, so it is only for a communicator at rest; else Abort.
  const bool rests = status_.ok() && open_.empty();
  if (rests && api_.AsyncError(comm_) == NcclResult::kSuccess) {
    status_ = absl::AbortedError("it is left");
    StartEnd([&api = api_, comm = comm_] {
      NcclResult result = api.Finalize(comm);
      while (result == NcclResult::kInProgress) {
        std::this_thread::yield();
        result = api.AsyncError(comm);
      }
      if (result == NcclResult::kSuccess) {
        api.Destroy(comm);
      } else {
        api.Abort(comm);
      }
    });
  }
  End("it is left");
  while (!Ended()) std::this_thread::yield();
  for (const auto& [operation, open] : open_) {
    if (open.event != nullptr) api_.FreeMark(open.event);
    if (open.staging.memory != nullptr) free_blocks_.push_back(open.staging);
  }
  for (const Block& block : free_blocks_) api_.FreePinned(block.memory);
}

Collective::Operation NcclCollective::StartAllToAll(
    std::span<const std::span<const std::byte>> send,
    std::span<const std::span<std::byte>> receive) {
  CHECK_EQ(static_cast<int>(send.size()), size());
  CHECK_EQ(static_cast<int>(receive.size()), size());
  Open open;
  // An operation of an epoch that has ended still gets its number, and Done says how the epoch
  // ended.
  if (!status_.ok()) return Queue(std::move(open));
  size_t staged_bytes = 0;
  const auto plan = [&](std::vector<Transfer>& transfers, int peer, std::byte* at, size_t bytes) {
    if (bytes == 0) return;
    // Memory that the card cannot address goes through a pinned block.
    const bool reached = api_.Reaches(at);
    transfers.push_back({peer, reached ? at : nullptr, reached ? nullptr : at, bytes});
    if (!reached) staged_bytes += Aligned(bytes);
  };
  for (int peer = 0; peer < size(); ++peer) {
    plan(open.sends, peer, const_cast<std::byte*>(send[peer].data()), send[peer].size());
    plan(open.receives, peer, receive[peer].data(), receive[peer].size());
  }
  if (staged_bytes > 0) open.staging = TakeBlock(staged_bytes);
  if (!status_.ok()) return Queue({});
  std::byte* next = open.staging.memory;
  for (std::vector<Transfer>* transfers : {&open.sends, &open.receives}) {
    for (Transfer& transfer : *transfers) {
      if (transfer.owner == nullptr) continue;
      transfer.at = std::exchange(next, next + Aligned(transfer.bytes));
      if (transfers == &open.sends) std::memcpy(transfer.at, transfer.owner, transfer.bytes);
    }
  }
  return Queue(std::move(open));
}

Collective::Operation NcclCollective::StartAllReduce(Reduction reduction,
                                                     std::span<int64_t> values) {
  Open open{.values = values, .reduction = reduction, .reduces = true};
  if (!status_.ok()) return Queue(std::move(open));
  open.staging = TakeBlock(values.size_bytes());
  if (!status_.ok()) return Queue({});
  std::memcpy(open.staging.memory, values.data(), values.size_bytes());
  open.receives.push_back({.at = open.staging.memory,
                           .owner = reinterpret_cast<std::byte*>(values.data()),
                           .bytes = values.size_bytes()});
  return Queue(std::move(open));
}

Collective::Operation NcclCollective::Queue(Open open) {
  // Operations go to NCCL in the order of their start, since NCCL matches them by nothing else.
  open_.emplace(next_, std::move(open));
  queue_.push_back(next_);
  Advance();
  return next_++;
}

absl::StatusOr<bool> NcclCollective::Done(Operation operation) {
  const auto found = open_.find(operation);
  CHECK(found != open_.end()) << "operation " << operation;
  Advance();
  Open& open = found->second;
  // Once the epoch is over no operation succeeds, even one that has run here: on another rank the
  // same one may have failed, and all ranks must do the same next.
  if (status_.ok() && open.event != nullptr) {
    const NcclResult result = api_.Reached(open.event);
    if (result != NcclResult::kInProgress && Check("the card", result)) {
      Complete(open);
      open_.erase(found);
      return true;
    }
  }
  if (!Ended()) return false;
  return status_;
}

void NcclCollective::Complete(const Open& open) {
  for (const Transfer& transfer : open.receives) {
    if (transfer.owner != nullptr) std::memcpy(transfer.owner, transfer.at, transfer.bytes);
  }
  api_.FreeMark(open.event);
  if (open.staging.memory != nullptr) free_blocks_.push_back(open.staging);
}

NcclCollective::Block NcclCollective::TakeBlock(size_t bytes) {
  const auto fits = [bytes](const Block& block) { return block.bytes >= bytes; };
  const auto found = std::ranges::find_if(free_blocks_, fits);
  if (found != free_blocks_.end()) {
    const Block block = *found;
    free_blocks_.erase(found);
    return block;
  }
  Block block{.bytes = std::bit_ceil(std::max(bytes, kBlockBytesMin))};
  block.memory = api_.AllocatePinned(block.bytes);
  if (block.memory == nullptr) Abort(absl::StrCat("no ", block.bytes, " bytes of pinned memory"));
  return block;
}

void NcclCollective::Advance() {
  while (status_.ok()) {
    // No call is allowed while the one before is in progress.
    const NcclResult state = api_.AsyncError(comm_);
    if (state == NcclResult::kInProgress || !Check("the communicator", state)) return;
    if (launching_) {
      MarkLaunched();
    } else if (!queue_.empty()) {
      Launch(open_.at(queue_.front()));
    } else {
      return;
    }
  }
}

void NcclCollective::Launch(Open& open) {
  // Sends and receives go in one group: outside of a group each might wait for the peer's other
  // half.
  if (!Check("ncclGroupStart", api_.GroupStart())) return;
  NcclResult result = NcclResult::kSuccess;
  // Within a group each call is only noted.
  const auto note = [&](NcclResult call) {
    const bool noted = call == NcclResult::kSuccess || call == NcclResult::kInProgress;
    if (!noted && result == NcclResult::kSuccess) result = call;
  };
  if (open.reduces) {
    note(api_.AllReduce(comm_, open.reduction, reinterpret_cast<int64_t*>(open.staging.memory),
                        open.values.size()));
  }
  for (const Transfer& send : open.sends) note(api_.Send(comm_, send.at, send.bytes, send.peer));
  if (!open.reduces) {
    for (const Transfer& receive : open.receives) {
      note(api_.Receive(comm_, receive.at, receive.bytes, receive.peer));
    }
  }
  // A group must be ended even after an error within it, or the next one would be nested in it.
  const NcclResult ended = api_.GroupEnd();
  if (!Check("ncclGroupEnd", result)) return;
  launching_ = true;
  if (ended != NcclResult::kInProgress) Check("ncclGroupEnd", ended);
}

void NcclCollective::MarkLaunched() {
  // Only now: a stream must not be marked while the group is still being enqueued (nccl_api.h).
  launching_ = false;
  Open& open = open_.at(queue_.front());
  queue_.pop_front();
  Check("cudaEventRecord", api_.Mark(open.event));
}

bool NcclCollective::Check(const char* what, NcclResult result) {
  if (result == NcclResult::kSuccess) return true;
  Abort(absl::StrCat(what, ": ", api_.ErrorText(result)));
  return false;
}

void NcclCollective::Abort(const std::string& reason) {
  if (!status_.ok()) return;
  const std::string text = absl::StrCat("rank ", options_.rank, ": ", reason);
  End(text);
  if (handlers_.on_abort) handlers_.on_abort(text);
}

void NcclCollective::End(const std::string& reason) {
  if (!status_.ok()) return;
  status_ = absl::AbortedError(reason);
  queue_.clear();
  // The communicator could not even begin to form, so there is nothing to abort.
  if (comm_ == nullptr) return;
  StartEnd([&api = api_, comm = comm_] { api.Abort(comm); });
}

void NcclCollective::StartEnd(std::function<void()> body) {
  helper_done_ = false;
  deadline_ = clock_.Now() + options_.abort_deadline;
  // Aborting may block for seconds, and the rank must report meanwhile.
  helper_ = threads_.Start("nccl end", [this, body = std::move(body)] {
    body();
    helper_done_ = true;
  });
}

bool NcclCollective::Ended() {
  if (status_.ok()) return false;
  if (helper_done_) {
    helper_.reset();
    return true;
  }
  if (clock_.Now() < deadline_) return false;
  // Said once.
  deadline_ = absl::InfiniteFuture();
  const std::string why = absl::StrCat(
      "the card did not give up the epoch within ", absl::FormatDuration(options_.abort_deadline),
      " (", std::string(status_.message()), "); only the end of this process frees it");
  LOG_ERROR("{}", why);
  handlers_.on_stuck(why);
  return false;
}

}  // namespace epic::cluster
