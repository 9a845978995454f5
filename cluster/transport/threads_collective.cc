#include "cluster/transport/threads_collective.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::cluster {
namespace {

void Reduce(Reduction reduction, std::span<const int64_t> from, std::span<int64_t> into) {
  for (size_t i = 0; i < into.size(); ++i) {
    switch (reduction) {
      case Reduction::kMin:
        into[i] = std::min(into[i], from[i]);
        break;
      case Reduction::kMax:
        into[i] = std::max(into[i], from[i]);
        break;
      case Reduction::kSum:
        into[i] += from[i];
        break;
    }
  }
}

}  // namespace

class ThreadsWorld::End : public Collective {
 public:
  End(ThreadsWorld& world, int rank) : world_(world), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return world_.size_; }

  Operation StartAllToAll(std::span<const std::span<const std::byte>> send,
                          std::span<const std::span<std::byte>> receive) override {
    CHECK_EQ(static_cast<int>(send.size()), size());
    CHECK_EQ(static_cast<int>(receive.size()), size());
    const absl::MutexLock lock(&world_.mutex_);
    const Operation operation = next_++;
    // Operations are matched by their number: the n-th of each rank is the same one.
    Meeting& meeting = Come(operation, {});
    // NCCL and MPI hang here or mix up bytes. This one names both ranks, which is what tests want.
    if (meeting.reduces) Mismatch(operation, meeting, "all-to-all");
    meeting.sent.resize(size());
    // Copied: the sender may reuse its memory as soon as it is done, before others have come.
    for (const auto& part : send) meeting.sent[rank_].emplace_back(part.begin(), part.end());
    open_[operation].receive.assign(receive.begin(), receive.end());
    return operation;
  }

  Operation StartAllReduce(Reduction reduction, std::span<int64_t> values) override {
    const absl::MutexLock lock(&world_.mutex_);
    const Operation operation = next_++;
    const bool first = !world_.meetings_.contains(operation);
    Meeting& meeting = Come(operation, {.reduces = true, .reduction = reduction});
    if (first) {
      meeting.values.assign(values.begin(), values.end());
    } else if (!meeting.reduces || meeting.reduction != reduction ||
               meeting.values.size() != values.size()) {
      Mismatch(operation, meeting, absl::StrCat("all-reduce of ", values.size()));
    } else {
      // Ranks come in any order. Integers give one result for all of them.
      Reduce(reduction, values, meeting.values);
    }
    open_[operation].values = values;
    return operation;
  }

  absl::StatusOr<bool> Done(Operation operation) override {
    const absl::MutexLock lock(&world_.mutex_);
    const auto open = open_.find(operation);
    CHECK(open != open_.end()) << "operation " << operation;
    if (world_.status_.ok() && world_.meetings_.at(operation).came < size()) return false;
    // Take may find that lengths do not fit, and fail the world.
    if (world_.status_.ok()) Take(operation, open->second);
    if (!world_.status_.ok()) return world_.status_;
    open_.erase(open);
    return true;
  }

  void Abort(const std::string& reason) override {
    const absl::MutexLock lock(&world_.mutex_);
    world_.Fail(rank_, reason);
  }

 private:
  // Where the results of an operation go.
  struct Wanted {
    std::vector<std::span<std::byte>> receive;
    std::span<int64_t> values;
  };

  // The first rank to come brings the shape that the others' operation must have.
  Meeting& Come(Operation operation, Meeting shape)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(world_.mutex_) {
    shape.first = rank_;
    Meeting& meeting = world_.meetings_.try_emplace(operation, std::move(shape)).first->second;
    ++meeting.came;
    return meeting;
  }

  void Mismatch(Operation operation, const Meeting& meeting, const std::string& what)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(world_.mutex_) {
    world_.Fail(rank_, absl::StrCat("its operation ", operation, " is an ", what, ", rank ",
                                    meeting.first, "'s is not"));
  }

  // The last rank to take its share ends the meeting.
  void Take(Operation operation, const Wanted& open)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(world_.mutex_) {
    Meeting& meeting = world_.meetings_.at(operation);
    if (meeting.reduces) std::ranges::copy(meeting.values, open.values.begin());
    for (size_t from = 0; from < open.receive.size(); ++from) {
      const std::vector<std::byte>& part = meeting.sent[from][rank_];
      if (part.size() != open.receive[from].size()) {
        return world_.Fail(
            rank_, absl::StrCat("operation ", operation, ": rank ", from, " sent ", part.size(),
                                " bytes, ", open.receive[from].size(), " were expected"));
      }
      std::ranges::copy(part, open.receive[from].begin());
    }
    // The last to leave takes the meeting away.
    if (++meeting.left == size()) world_.meetings_.erase(operation);
  }

  ThreadsWorld& world_;
  const int rank_;
  Operation next_ = 0;
  std::map<Operation, Wanted> open_;
};

ThreadsWorld::ThreadsWorld(int size) : size_(size) {
  for (int rank = 0; rank < size; ++rank) ends_.push_back(std::make_unique<End>(*this, rank));
}

ThreadsWorld::~ThreadsWorld() = default;

Collective& ThreadsWorld::end(int rank) { return *ends_.at(rank); }

void ThreadsWorld::Fail(int rank, const std::string& reason) {
  // The first reason stays: later ones only follow from it.
  if (status_.ok()) status_ = absl::AbortedError(absl::StrCat("rank ", rank, ": ", reason));
}

}  // namespace epic::cluster
