// ThreadsCollective: a Collective between threads of one process, for tests. What is sent is copied
// when it starts; nothing sleeps, the threads poll.
//
//   ThreadsWorld world(4);                  // one epoch
//   … on thread r: Use(world.end(r));
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "cluster/transport/collective.h"

namespace epic::cluster {

// Outlives the use of its ends. Thread-safe.
class ThreadsWorld {
 public:
  explicit ThreadsWorld(int size);
  ~ThreadsWorld();
  ThreadsWorld(const ThreadsWorld&) = delete;

  Collective& end(int rank);

 private:
  class End;
  // What the ranks have brought to one operation so far.
  struct Meeting {
    int came = 0;
    int left = 0;
    int first = -1;  // the rank whose operation the others' must match
    bool reduces = false;
    Reduction reduction = Reduction::kMin;
    std::vector<int64_t> values;                            // reduced so far
    std::vector<std::vector<std::vector<std::byte>>> sent;  // [from][to]
  };

  void Fail(int rank, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int size_;
  std::vector<std::unique_ptr<End>> ends_;  // made with the world, never changed
  absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::map<Collective::Operation, Meeting> meetings_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace epic::cluster
