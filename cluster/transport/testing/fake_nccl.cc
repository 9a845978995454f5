#include "cluster/transport/testing/fake_nccl.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::cluster {

class FakeNccl::Card : public NcclApi {
 public:
  Card(FakeNccl& world, int index) : world_(world), index_(index) {}

  NcclResult GetUniqueId(NcclUniqueId& id) override {
    const absl::MutexLock lock(&world_.mutex_);
    if (const NcclResult failure = Failure("GetUniqueId"); failure != NcclResult::kSuccess) {
      return failure;
    }
    id = {};
    const std::string text = absl::StrCat("id ", ++world_.ids_);
    std::ranges::copy(text, id.begin());
    return NcclResult::kSuccess;
  }

  NcclResult InitRank(NcclComm& comm, int size, const NcclUniqueId& id, int rank) override {
    const absl::MutexLock lock(&world_.mutex_);
    if (const NcclResult failure = Failure("InitRank"); failure != NcclResult::kSuccess) {
      return failure;
    }
    auto made = std::make_unique<Comm>(Comm{.id = id, .card = index_, .rank = rank, .size = size});
    comm = made.get();
    world_.comms_[comm] = std::move(made);
    world_.Form(id, size);
    return NcclResult::kInProgress;
  }

  NcclResult AsyncError(NcclComm comm) override { return GiveWay(StateOf(comm)); }

  NcclResult StateOf(NcclComm comm) {
    const absl::MutexLock lock(&world_.mutex_);
    if (const NcclResult failure = Failure("AsyncError"); failure != NcclResult::kSuccess) {
      At(comm).error = failure;
    }
    world_.Run();
    Comm& at = At(comm);
    if (at.error != NcclResult::kSuccess) return at.error;
    if (!at.formed) return NcclResult::kInProgress;
    if (at.finalized && !world_.Finalized(at)) return NcclResult::kInProgress;
    if (at.launching.empty()) return NcclResult::kSuccess;
    if (at.polls_left-- > 0) return NcclResult::kInProgress;
    at.stream.push_back(std::move(at.launching.front()));
    at.launching.pop_front();
    ++at.enqueued;
    return NcclResult::kSuccess;
  }

  NcclResult GroupStart() override {
    const absl::MutexLock lock(&world_.mutex_);
    CHECK(!group_) << "a group is open";
    const NcclResult failure = Failure("GroupStart");
    if (failure == NcclResult::kSuccess) group_.emplace();
    group_comm_ = nullptr;
    return failure;
  }

  NcclResult Send(NcclComm comm, const std::byte* from, size_t bytes, int peer) override {
    return Add("Send", comm, {const_cast<std::byte*>(from), bytes, peer, /*sends=*/true});
  }

  NcclResult Receive(NcclComm comm, std::byte* into, size_t bytes, int peer) override {
    return Add("Receive", comm, {into, bytes, peer, /*sends=*/false});
  }

  NcclResult AllReduce(NcclComm comm, Reduction reduction, int64_t* values, size_t count) override {
    const absl::MutexLock lock(&world_.mutex_);
    Idle(comm);
    CHECK(world_.Reaches(reinterpret_cast<std::byte*>(values), count * sizeof *values));
    group_comm_ = comm;
    group_->reduced = {values};
    group_->reduction = reduction;
    group_->count = count;
    return Failure("AllReduce");
  }

  NcclResult GroupEnd() override {
    const absl::MutexLock lock(&world_.mutex_);
    CHECK(group_.has_value());
    Group group = *std::exchange(group_, std::nullopt);
    if (const NcclResult failure = Failure("GroupEnd"); failure != NcclResult::kSuccess) {
      return failure;
    }
    if (group_comm_ == nullptr) return NcclResult::kSuccess;
    Comm& at = At(group_comm_);
    at.polls_left = static_cast<int>(world_.random_.Next() % 4);
    at.launching.push_back(std::move(group));
    return NcclResult::kInProgress;
  }

  NcclResult Finalize(NcclComm comm) override {
    const absl::MutexLock lock(&world_.mutex_);
    Idle(comm);
    At(comm).finalized = true;
    return NcclResult::kInProgress;
  }

  NcclResult Destroy(NcclComm comm) override {
    const absl::MutexLock lock(&world_.mutex_);
    Idle(comm);
    CHECK(At(comm).finalized && At(comm).stream.empty());
    Free(comm);
    return NcclResult::kSuccess;
  }

  NcclResult Abort(NcclComm comm) override {
    {
      const absl::MutexLock lock(&world_.mutex_);
      At(comm).over = true;
    }
    while (world_.aborts_hang) std::this_thread::yield();
    const absl::MutexLock lock(&world_.mutex_);
    Free(comm);
    return NcclResult::kSuccess;
  }

  NcclResult Mark(NcclEvent& event) override {
    const absl::MutexLock lock(&world_.mutex_);
    if (const NcclResult failure = Failure("Mark"); failure != NcclResult::kSuccess) {
      return failure;
    }
    // A card is one rank's, with one communicator at a time.
    auto mark = std::make_unique<FakeNccl::Mark>();
    for (const auto& [comm, at] : world_.comms_) {
      if (at->card != index_ || at->over) continue;
      Idle(comm);
      *mark = {at.get(), at->enqueued};
    }
    event = mark.get();
    world_.marks_[event] = std::move(mark);
    return NcclResult::kSuccess;
  }

  NcclResult Reached(NcclEvent event) override { return GiveWay(StateAt(event)); }

  NcclResult StateAt(NcclEvent event) {
    const absl::MutexLock lock(&world_.mutex_);
    if (const NcclResult failure = Failure("Reached"); failure != NcclResult::kSuccess) {
      return failure;
    }
    world_.Run();
    const FakeNccl::Mark& mark = *world_.marks_.at(event);
    CHECK(mark.comm != nullptr) << "the communicator is freed";
    return mark.comm->run >= mark.at ? NcclResult::kSuccess : NcclResult::kInProgress;
  }

  void FreeMark(NcclEvent event) override {
    const absl::MutexLock lock(&world_.mutex_);
    CHECK_EQ(world_.marks_.erase(event), 1u);
  }

  bool Reaches(const void* memory) override {
    const absl::MutexLock lock(&world_.mutex_);
    return world_.Reaches(static_cast<const std::byte*>(memory), 1);
  }

  std::byte* AllocatePinned(size_t bytes) override {
    const absl::MutexLock lock(&world_.mutex_);
    if (Failure("AllocatePinned") != NcclResult::kSuccess) return nullptr;
    auto block = std::make_unique<std::byte[]>(bytes);
    std::byte* memory = block.get();
    world_.pinned_[memory] = std::move(block);
    world_.reached_[memory] = bytes;
    return memory;
  }

  void FreePinned(std::byte* memory) override {
    const absl::MutexLock lock(&world_.mutex_);
    CHECK_EQ(world_.pinned_.erase(memory), 1u);
    world_.reached_.erase(memory);
  }

  std::string ErrorText(NcclResult result) override {
    return absl::StrCat("error ", static_cast<int>(result));
  }

 private:
  // Whoever asks in vain waits for another rank's thread.
  static NcclResult GiveWay(NcclResult result) {
    if (result == NcclResult::kInProgress) std::this_thread::yield();
    return result;
  }

  Comm& At(NcclComm comm) ABSL_EXCLUSIVE_LOCKS_REQUIRED(world_.mutex_) {
    const auto found = world_.comms_.find(comm);
    CHECK(found != world_.comms_.end()) << "the communicator is freed";
    return *found->second;
  }

  // The communicator may be asked for more.
  void Idle(NcclComm comm) ABSL_EXCLUSIVE_LOCKS_REQUIRED(world_.mutex_) {
    const Comm& at = At(comm);
    CHECK(at.formed && at.launching.empty() && !at.over) << "in progress";
    CHECK(at.error == NcclResult::kSuccess) << "it has failed";
  }

  NcclResult Add(const std::string& call, NcclComm comm, Transfer transfer) {
    const absl::MutexLock lock(&world_.mutex_);
    Idle(comm);
    CHECK(group_.has_value()) << "outside of a group";
    CHECK(world_.Reaches(transfer.at, transfer.bytes)) << "the card does not reach it";
    group_comm_ = comm;
    group_->transfers.push_back(transfer);
    return Failure(call);
  }

  NcclResult Failure(const std::string& call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(world_.mutex_) {
    const auto found = world_.failures_.find({index_, call});
    if (found == world_.failures_.end()) return NcclResult::kSuccess;
    const NcclResult result = found->second;
    world_.failures_.erase(found);
    return result;
  }

  void Free(NcclComm comm) ABSL_EXCLUSIVE_LOCKS_REQUIRED(world_.mutex_) {
    Comm& at = At(comm);
    for (auto& [event, mark] : world_.marks_) {
      if (mark->comm == &at) mark->comm = nullptr;
    }
    world_.comms_.erase(comm);
  }

  FakeNccl& world_;
  const int index_;
  std::optional<Group> group_;
  NcclComm group_comm_ = nullptr;
};

FakeNccl::FakeNccl(int cards, uint64_t seed) : random_(seed) {
  for (int i = 0; i < cards; ++i) cards_.push_back(std::make_unique<Card>(*this, i));
}

FakeNccl::~FakeNccl() = default;

NcclApi& FakeNccl::card(int index) { return *cards_.at(index); }

void FakeNccl::Kill(int card, bool noticed) {
  const absl::MutexLock lock(&mutex_);
  for (auto& [comm, at] : comms_) {
    if (at->card == card) {
      at->over = true;
    } else if (noticed) {
      at->error = NcclResult::kRemoteError;
    }
  }
}

void FakeNccl::FailNext(int card, const std::string& call, NcclResult result) {
  const absl::MutexLock lock(&mutex_);
  failures_[{card, call}] = result;
}

void FakeNccl::AddDeviceMemory(const std::byte* memory, size_t bytes) {
  const absl::MutexLock lock(&mutex_);
  reached_[memory] = bytes;
}

int FakeNccl::held_count() const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int>(comms_.size() + marks_.size() + pinned_.size());
}

int FakeNccl::pinned_count() const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int>(pinned_.size());
}

void FakeNccl::Form(const NcclUniqueId& id, int size) {
  std::vector<Comm*> came;
  for (const auto& [name, comm] : comms_) {
    if (comm->id == id) came.push_back(comm.get());
  }
  if (static_cast<int>(came.size()) < size) return;
  for (Comm* comm : came) comm->formed = true;
}

bool FakeNccl::Finalized(const Comm& comm) const {
  return std::ranges::all_of(comms_, [&comm](const auto& entry) {
    const Comm& other = *entry.second;
    return other.id != comm.id || (other.finalized && other.stream.empty());
  });
}

FakeNccl::Comm* FakeNccl::Peer(const Comm& comm, int rank) const {
  for (const auto& [name, other] : comms_) {
    if (other->id == comm.id && other->rank == rank) return other.get();
  }
  return nullptr;
}

void FakeNccl::Run() {
  bool moved = true;
  while (moved) {
    moved = false;
    for (auto& [name, comm] : comms_) {
      if (!comm->over && !comm->stream.empty()) moved |= RunGroup(*comm);
    }
  }
}

bool FakeNccl::RunGroup(Comm& comm) {
  Group& group = comm.stream.front();
  bool moved = !group.reduced.empty() && !group.done && RunReduce(comm);
  for (Transfer& transfer : group.transfers) {
    if (transfer.sends && !transfer.done) moved |= RunTransfer(comm, transfer);
  }
  const bool transferred =
      std::ranges::all_of(group.transfers, [](const Transfer& t) { return t.done; });
  if (!transferred || (!group.reduced.empty() && !group.done)) return moved;
  comm.stream.pop_front();
  ++comm.run;
  return true;
}

bool FakeNccl::RunReduce(Comm& comm) {
  std::vector<Group*> groups;
  for (int rank = 0; rank < comm.size; ++rank) {
    Comm* peer = Peer(comm, rank);
    if (peer == nullptr || peer->over || peer->stream.empty()) return false;
    groups.push_back(&peer->stream.front());
    const Group& first = *groups.front();
    const Group& group = *groups.back();
    if (group.reduced.empty() || group.done || group.count != first.count ||
        group.reduction != first.reduction) {
      return false;
    }
  }
  std::vector<int64_t> values(groups[0]->reduced[0], groups[0]->reduced[0] + groups[0]->count);
  for (size_t rank = 1; rank < groups.size(); ++rank) {
    for (size_t i = 0; i < values.size(); ++i) {
      const int64_t value = groups[rank]->reduced[0][i];
      if (comm.stream.front().reduction == Reduction::kMin) values[i] = std::min(values[i], value);
      if (comm.stream.front().reduction == Reduction::kMax) values[i] = std::max(values[i], value);
      if (comm.stream.front().reduction == Reduction::kSum) values[i] += value;
    }
  }
  for (Group* group : groups) {
    std::ranges::copy(values, group->reduced[0]);
    group->done = true;
  }
  return true;
}

bool FakeNccl::RunTransfer(Comm& comm, Transfer& send) {
  Comm* peer = Peer(comm, send.peer);
  if (peer == nullptr || peer->over || peer->stream.empty()) return false;
  for (Transfer& receive : peer->stream.front().transfers) {
    if (receive.sends || receive.done || receive.peer != comm.rank) continue;
    if (receive.bytes != send.bytes) return false;
    std::memcpy(receive.at, send.at, send.bytes);
    return receive.done = send.done = true;
  }
  return false;
}

bool FakeNccl::Reaches(const std::byte* memory, size_t bytes) const {
  auto after = reached_.upper_bound(memory);
  if (after == reached_.begin()) return false;
  const auto& [first, size] = *std::prev(after);
  return memory + bytes <= first + size;
}

}  // namespace epic::cluster
