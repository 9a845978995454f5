// LineWriter: appends lines to a file on a thread of its own, so that a disk that is slow, full or
// gone never delays whoever has something to write down.
//
//   ASSIGN_OR_RETURN(auto writer, LineWriter::Open(env.storage, env.threads, "events.jsonl"));
//   writer->Append("{\"number\": 1}");
//
// Each line of the file is one that was appended, whole, or the torn one that an earlier process or
// a full disk left: a new line never continues it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/env.h"
#include "base/storage.h"

namespace epic {

// Thread-safe.
class LineWriter {
 public:
  // At most so many lines wait for the disk, and those beyond are lost. Events come in bursts of
  // one for each rank, and a world has up to a thousand ranks.
  static constexpr size_t kQueuedMax = 4096;

  // Returns an error, which names the file, if the file cannot be written. `storage` and `threads`
  // outlive the writer.
  static absl::StatusOr<std::unique_ptr<LineWriter>> Open(Storage& storage, Threads& threads,
                                                          const std::string& path);
  // Writes what is queued.
  ~LineWriter();

  // Queues `line`, which has no newline, and returns at once.
  void Append(std::string line);
  // Returns when each line that was appended before is in the file, or lost.
  void Flush();
  // Lines that the file does not have, because the queue or the disk was full.
  int64_t lost() const;

 private:
  LineWriter(std::unique_ptr<AppendFile> file, bool torn) : file_(std::move(file)), torn_(torn) {}
  void Run();
  bool Write(const std::string& line);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return closed_ || !queue_.empty(); }
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return queue_.empty() && !writing_; }

  // The writer's thread alone uses these two.
  const std::unique_ptr<AppendFile> file_;
  bool torn_;  // the file's last line has no newline

  mutable absl::Mutex mutex_;
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t lost_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Threads::Handle> thread_;  // last: it uses all of the above
};

}  // namespace epic
