// SimStorage: files in memory, for tests, on a machine that may lose power at any operation and
// whose disk may run full. Everything repeats from a seed.
//
//   SimStorage storage(7);
//   storage.LosePowerAt(3);        // the fourth operation from now fails, and all after it
//   Subject(storage);
//   storage.Restart();
//   EXPECT_…(Subject(storage));
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/sim_loop.h"
#include "base/storage.h"

namespace epic {

// Thread-safe. Paths are names: there are no folders.
class SimStorage : public Storage {
 public:
  explicit SimStorage(uint64_t seed) : random_(seed) {}

  absl::StatusOr<std::unique_ptr<AppendFile>> OpenToAppend(const std::string& path) override;
  absl::StatusOr<std::string> Read(const std::string& path, uint64_t offset) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;

  // Bytes that all files may have together. An append that does not fit fills the disk with its
  // first bytes, and fails.
  void SetCapacity(uint64_t bytes);
  // After `count` more operations the power goes during the next one, which may then have been
  // done, in part or not at all. That operation fails, as do all later ones until Restart.
  void LosePowerAt(int count);
  // The power is lost (now, if it was not before) and is there again. Each file keeps what was
  // synced, and a random part of the rest; a file that was created and never renamed may be gone.
  // Files that were opened before fail for ever.
  void Restart();

 private:
  class Handle;
  struct File {
    std::string bytes;
    size_t synced = 0;
    bool name_synced = false;
  };

  // Counts an operation; an error if the power is gone. `last`: it goes during this one.
  absl::Status Operate(bool* last) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Append(File& file, int life, std::string_view bytes);
  absl::Status Sync(File& file, int life);
  uint64_t Used() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Chance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return random_.Next() % 2 == 0; }

  mutable absl::Mutex mutex_;
  SeededRandom random_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<File>> files_ ABSL_GUARDED_BY(mutex_);
  uint64_t capacity_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;
  std::optional<int> operations_left_ ABSL_GUARDED_BY(mutex_);  // none: the power stays
  int life_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace epic
