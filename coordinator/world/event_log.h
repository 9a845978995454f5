// EventLog: the one ordered log of what happened to the world: joins, losses with their evidence,
// maps, drains, resubmissions, quarantines. Kept in memory up to a limit, and written as JSON
// lines.
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/env.h"

namespace epic::coordinator {

struct Event {
  uint64_t number = 0;  // 1, 2, 3 …
  absl::Time time;
  std::string kind;  // join, refuse, start, place, ready, map, lost, revoke, drain, resubmit, …
  int rank = -1;     // -1: of no rank
  uint64_t generation = 0;
  std::string text;
};

// Thread-safe.
class EventLog {
 public:
  static constexpr size_t kKept = 4096;

  explicit EventLog(const Clock& clock) : clock_(clock) {}
  ~EventLog();

  // Appends JSON lines to `path` from now on. A write that fails later is counted, and serving
  // goes on.
  absl::Status OpenFile(const std::string& path);

  // Also tells the process's own log.
  void Append(std::string kind, int rank, uint64_t generation, std::string text);

  // Those from `from` on that are kept, at most `count_max` (0: all).
  std::vector<Event> Read(uint64_t from, size_t count_max = 0) const;
  uint64_t last() const;
  int64_t failed_writes() const;

  // Called after each event, on the thread that appended it, until it is removed: hand over, never
  // work there. Remove returns when no call is under way.
  using ListenerId = uint64_t;
  ListenerId AddListener(std::function<void()> listener);
  void RemoveListener(ListenerId listener);

 private:
  void Write(const Event& event);

  const Clock& clock_;
  mutable std::mutex mutex_;
  std::deque<Event> events_;
  uint64_t last_ = 0;
  std::FILE* file_ = nullptr;
  int64_t failed_writes_ = 0;
  std::mutex listeners_mutex_;
  ListenerId next_listener_ = 1;
  std::map<ListenerId, std::function<void()>> listeners_;
};

}  // namespace epic::coordinator
