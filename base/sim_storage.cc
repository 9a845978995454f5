#include "base/sim_storage.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic {
namespace {

absl::Status PowerIsGone() { return absl::UnavailableError("the power is gone"); }

}  // namespace

class SimStorage::Handle : public AppendFile {
 public:
  Handle(SimStorage& storage, std::shared_ptr<File> file, int life)
      : storage_(storage), file_(std::move(file)), life_(life) {}

  absl::Status Append(std::string_view bytes) override {
    return storage_.Append(*file_, life_, bytes);
  }
  absl::Status Sync() override { return storage_.Sync(*file_, life_); }
  uint64_t size() const override {
    const absl::MutexLock lock(&storage_.mutex_);
    return file_->bytes.size();
  }

 private:
  SimStorage& storage_;
  const std::shared_ptr<File> file_;
  const int life_;
};

absl::Status SimStorage::Operate(bool* last) {
  *last = false;
  if (!operations_left_) return absl::OkStatus();
  if (*operations_left_ < 0) return PowerIsGone();
  *last = *operations_left_ == 0;
  --*operations_left_;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<AppendFile>> SimStorage::OpenToAppend(const std::string& path) {
  const absl::MutexLock lock(&mutex_);
  bool last = false;
  RETURN_IF_ERROR(Operate(&last));
  // The power goes before the operation or after it. Either way its caller gets an error, and must
  // not believe that nothing was done.
  if (last && Chance()) return PowerIsGone();
  // A name that Open has made is safe only after a rename (name_synced), as in a folder that nobody
  // has synced.
  std::shared_ptr<File>& file = files_[path];
  if (file == nullptr) file = std::make_shared<File>();
  if (last) return PowerIsGone();
  return std::make_unique<Handle>(*this, file, life_);
}

absl::StatusOr<std::string> SimStorage::Read(const std::string& path, uint64_t offset) {
  const absl::MutexLock lock(&mutex_);
  bool last = false;
  RETURN_IF_ERROR(Operate(&last));
  if (last) return PowerIsGone();
  const auto found = files_.find(path);
  if (found == files_.end()) return absl::NotFoundError(absl::StrCat("no file ", path));
  return found->second->bytes.substr(std::min<size_t>(offset, found->second->bytes.size()));
}

absl::Status SimStorage::Rename(const std::string& from, const std::string& to) {
  const absl::MutexLock lock(&mutex_);
  bool last = false;
  RETURN_IF_ERROR(Operate(&last));
  if (last && Chance()) return PowerIsGone();
  const auto found = files_.find(from);
  if (found == files_.end()) return absl::NotFoundError(absl::StrCat("no file ", from));
  // The file itself moves, with what of it is synced: a name does not make its bytes safe.
  const std::shared_ptr<File> file = std::move(found->second);
  files_.erase(found);
  // RealStorage syncs the folder after a rename, so the name is safe when Rename has returned.
  file->name_synced = true;
  files_[to] = file;
  return last ? PowerIsGone() : absl::OkStatus();
}

absl::Status SimStorage::Remove(const std::string& path) {
  const absl::MutexLock lock(&mutex_);
  bool last = false;
  RETURN_IF_ERROR(Operate(&last));
  if (last && Chance()) return PowerIsGone();
  files_.erase(path);
  return last ? PowerIsGone() : absl::OkStatus();
}

absl::Status SimStorage::Append(File& file, int life, std::string_view bytes) {
  const absl::MutexLock lock(&mutex_);
  bool last = false;
  RETURN_IF_ERROR(Operate(&last));
  if (life != life_) return PowerIsGone();
  const uint64_t used = Used();
  const uint64_t room = capacity_ > used ? capacity_ - used : 0;
  const bool fits = bytes.size() <= room;
  size_t count = fits ? bytes.size() : static_cast<size_t>(room);
  // A torn tail begins here: some of the bytes are there when the power goes.
  if (last) count = std::min<size_t>(count, random_.Next() % (bytes.size() + 1));
  file.bytes.append(bytes.substr(0, count));
  if (last) return PowerIsGone();
  return fits ? absl::OkStatus() : absl::ResourceExhaustedError("the disk is full");
}

absl::Status SimStorage::Sync(File& file, int life) {
  const absl::MutexLock lock(&mutex_);
  bool last = false;
  RETURN_IF_ERROR(Operate(&last));
  if (life != life_ || (last && Chance())) return PowerIsGone();
  file.synced = file.bytes.size();
  return last ? PowerIsGone() : absl::OkStatus();
}

uint64_t SimStorage::Used() const {
  uint64_t used = 0;
  for (const auto& [path, file] : files_) used += file->bytes.size();
  return used;
}

void SimStorage::SetCapacity(uint64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  capacity_ = bytes;
}

void SimStorage::LosePowerAt(int count) {
  CHECK_GE(count, 0);
  const absl::MutexLock lock(&mutex_);
  operations_left_ = count;
}

void SimStorage::Restart() {
  const absl::MutexLock lock(&mutex_);
  // Files that are open are of the life before, and fail from now on.
  ++life_;
  operations_left_.reset();
  for (auto it = files_.begin(); it != files_.end();) {
    File& file = *it->second;
    CHECK_LE(file.synced, file.bytes.size());
    // Any part of what was not synced may have reached the disk.
    file.bytes.resize(file.synced + random_.Next() % (file.bytes.size() - file.synced + 1));
    file.synced = file.bytes.size();
    const bool lost = !file.name_synced && Chance();
    file.name_synced = true;
    it = lost ? files_.erase(it) : std::next(it);
  }
}

}  // namespace epic
