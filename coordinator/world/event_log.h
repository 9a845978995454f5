// EventLog: the one ordered log of what happened to the world: joins, losses with their evidence,
// maps, drains, resubmissions, quarantines. Kept in memory up to a limit, and written as JSON
// lines.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/env.h"
#include "base/line_writer.h"
#include "coordinator/world/event_kind.h"

namespace epic::coordinator {

struct Event {
  uint64_t number = 0;  // 1, 2, 3 …
  absl::Time time;
  EventKind kind = EventKind::kJoin;
  int rank = -1;     // -1: of no rank
  uint64_t generation = 0;
  std::string text;
};

// Thread-safe.
class EventLog {
 public:
  static constexpr size_t kKept = 4096;

  explicit EventLog(const Clock& clock) : clock_(clock) {}

  // Appends JSON lines to `path` from now on, on a thread of its own: those who append events are
  // never delayed by a disk. A line that the file cannot take is counted, and serving goes on.
  // FailedPrecondition or NotFound, naming the file, if it cannot be opened.
  absl::Status OpenFile(const Env& env, const std::string& path);

  // Also tells the process's own log.
  void Append(EventKind kind, int rank, uint64_t generation, std::string text);

  // The events from number `from` on that are kept, at most `count_max` (0: all).
  std::vector<Event> Read(uint64_t from, size_t count_max = 0) const;
  uint64_t last() const;
  // Events that the file does not have.
  int64_t failed_writes() const;
  // Returns when the file has each event that was appended before, or has lost and counted it. For
  // tests, because it holds up the threads that append.
  void FlushFile();

  // Called after each event, on the thread that appended it, until it is removed: hand over, never
  // work there. Remove returns when no call is under way.
  using ListenerId = uint64_t;
  ListenerId AddListener(std::function<void()> listener);
  void RemoveListener(ListenerId listener);

 private:
  const Clock& clock_;
  mutable absl::Mutex mutex_;
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<LineWriter> file_ ABSL_GUARDED_BY(mutex_);  // null: there is none
  absl::Mutex listeners_mutex_;
  ListenerId next_listener_ ABSL_GUARDED_BY(listeners_mutex_) = 1;
  std::map<ListenerId, std::function<void()>> listeners_ ABSL_GUARDED_BY(listeners_mutex_);
};

}  // namespace epic::coordinator
