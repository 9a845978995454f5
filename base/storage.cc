#include "base/storage.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace epic {
namespace {

absl::Status ErrorOf(int error, const std::string& what, const std::string& path) {
  const std::string message = absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(error));
  if (error == ENOENT) return absl::NotFoundError(message);
  // A quota is a disk of one's own that is full.
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  return absl::FailedPreconditionError(message);
}

class RealAppendFile : public AppendFile {
 public:
  RealAppendFile(UniqueFd fd, std::string path, uint64_t size)
      : fd_(std::move(fd)), path_(std::move(path)), size_(size) {}

  absl::Status Append(std::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t count = write(fd_.get(), bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrorOf(errno, "write", path_);
      CHECK_LE(static_cast<size_t>(count), bytes.size());
      bytes.remove_prefix(static_cast<size_t>(count));
      // Also when the next write fails: readers of size() learn that a part is there.
      size_ += static_cast<uint64_t>(count);
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    // fdatasync leaves out the times of the file and not its length, without which the new bytes
    // could not be read.
    return fdatasync(fd_.get()) == 0 ? absl::OkStatus() : ErrorOf(errno, "sync", path_);
  }

  uint64_t size() const override { return size_; }

 private:
  const UniqueFd fd_;
  const std::string path_;
  uint64_t size_;
};

// A new name in a folder survives the loss of power when the folder itself is synced.
absl::Status SyncFolderOf(const std::string& path) {
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) folder = ".";
  const UniqueFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrorOf(errno, "open", folder);
  return fsync(fd.get()) == 0 ? absl::OkStatus() : ErrorOf(errno, "sync", folder);
}

class FileSystem : public Storage {
 public:
  absl::StatusOr<std::unique_ptr<AppendFile>> OpenToAppend(const std::string& path) override {
    UniqueFd fd(open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
    struct stat about;
    if (!fd.valid() || fstat(fd.get(), &about) != 0) return ErrorOf(errno, "write", path);
    // A pipe or a terminal has no bytes that could be read again, and so no torn line either.
    const uint64_t size = S_ISREG(about.st_mode) ? static_cast<uint64_t>(about.st_size) : 0;
    return std::make_unique<RealAppendFile>(std::move(fd), path, size);
  }

  absl::StatusOr<std::string> Read(const std::string& path, uint64_t offset) override {
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return ErrorOf(errno, "read", path);
    std::string bytes;
    char part[1 << 14];
    for (;;) {
      const auto at = static_cast<off_t>(offset + bytes.size());
      const ssize_t count = pread(fd.get(), part, sizeof part, at);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrorOf(errno, "read", path);
      if (count == 0) return bytes;
      bytes.append(part, static_cast<size_t>(count));
    }
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (rename(from.c_str(), to.c_str()) != 0) return ErrorOf(errno, "rename", from);
    // Both names are in one folder (Storage::Rename), so this makes both changes safe.
    return SyncFolderOf(to);
  }

  absl::Status Remove(const std::string& path) override {
    // The folder is not synced: a file that comes back after a loss of power is removed again by
    // the next ReplaceFile.
    if (unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
    return ErrorOf(errno, "remove", path);
  }
};

class Nothing : public Storage {
 public:
  absl::StatusOr<std::unique_ptr<AppendFile>> OpenToAppend(const std::string& path) override {
    return Refusal(path);
  }
  absl::StatusOr<std::string> Read(const std::string& path, uint64_t) override {
    return Refusal(path);
  }
  absl::Status Rename(const std::string& from, const std::string&) override {
    return Refusal(from);
  }
  absl::Status Remove(const std::string& path) override { return Refusal(path); }

 private:
  static absl::Status Refusal(const std::string& path) {
    return absl::FailedPreconditionError(absl::StrCat("no storage was given for ", path));
  }
};

}  // namespace

absl::Status ReplaceFile(Storage& storage, const std::string& path, std::string_view bytes) {
  const std::string next = path + ".new";
  // What a process that died on its way has left would come first in the file.
  RETURN_IF_ERROR(storage.Remove(next));
  ASSIGN_OR_RETURN(const std::unique_ptr<AppendFile> file, storage.OpenToAppend(next));
  RETURN_IF_ERROR(file->Append(bytes));
  // Before the rename: else the name could survive the loss of power and the bytes not.
  RETURN_IF_ERROR(file->Sync());
  return storage.Rename(next, path);
}

Storage& RealStorage() {
  static FileSystem storage;
  return storage;
}

Storage& NoStorage() {
  static Nothing storage;
  return storage;
}

}  // namespace epic
