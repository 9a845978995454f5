#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/env.h"
#include "cluster/transport/nccl/nccl_collective.h"
#include "cluster/transport/testing/fake_nccl.h"
#include "cluster/transport/testing/world.h"

namespace epic::cluster {
namespace {

// What the coordinator does: the first reason is told to all.
class News {
 public:
  void Tell(const std::string& reason) {
    const absl::MutexLock lock(&mutex_);
    if (reason_.empty()) reason_ = reason;
  }
  std::string Hear() const {
    const absl::MutexLock lock(&mutex_);
    return reason_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::string reason_ ABSL_GUARDED_BY(mutex_);
};

// A rank that hears the news whenever it asks for its operations.
class RankEnd : public Collective {
 public:
  RankEnd(NcclApi& api, const NcclOptions& options, News& news)
      : news_(news),
        nccl_(api, RealClock(), RealThreads(), options,
              {.on_abort = [&news](const std::string& reason) { news.Tell(reason); },
               .on_stuck = [](const std::string& why) { CHECK(false) << why; }}) {}

  int rank() const override { return nccl_.rank(); }
  int size() const override { return nccl_.size(); }
  Operation StartAllToAll(std::span<const std::span<const std::byte>> send,
                          std::span<const std::span<std::byte>> receive) override {
    return nccl_.StartAllToAll(send, receive);
  }
  Operation StartAllReduce(Reduction reduction, std::span<int64_t> values) override {
    return nccl_.StartAllReduce(reduction, values);
  }
  absl::StatusOr<bool> Done(Operation operation) override {
    if (const std::string reason = news_.Hear(); !reason.empty()) nccl_.End(reason);
    return nccl_.Done(operation);
  }
  void Abort(const std::string& reason) override { nccl_.Abort(reason); }

 private:
  News& news_;
  NcclCollective nccl_;
};

}  // namespace

bool HasWorld(int size) { return true; }

bool OutlivesAbort() { return true; }

bool ComparesOperations() { return false; }

void RunWorld(int size, const std::function<void(Collective&)>& body) {
  FakeNccl nccl(size);
  NcclUniqueId id;
  CHECK(nccl.card(0).GetUniqueId(id) == NcclResult::kSuccess);
  News news;
  std::vector<std::unique_ptr<Threads::Handle>> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.push_back(RealThreads().Start("rank " + std::to_string(rank), [&, rank] {
      RankEnd end(nccl.card(rank), {.rank = rank, .size = size, .id = id}, news);
      body(end);
    }));
  }
  threads.clear();
  CHECK_EQ(nccl.held_count(), 0);
}

}  // namespace epic::cluster
