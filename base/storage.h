// Storage: files in which something must survive the process, or the machine. Production has the
// file system (RealStorage); tests have one that tears tails, runs full and loses power
// (base/sim_storage.h).
//
//   ASSIGN_OR_RETURN(std::unique_ptr<AppendFile> file, storage.OpenToAppend(path));
//   RETURN_IF_ERROR(file->Append("a line\n"));
//   RETURN_IF_ERROR(file->Sync());
//
// When the machine loses power, a file keeps what was synced and any part of what was appended
// after that: its readers must expect a torn tail.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace epic {

// One thread at a time. Errors name the file; ResourceExhausted means that the disk is full.
class AppendFile {
 public:
  virtual ~AppendFile() = default;
  // Appends all of `bytes`. After an error the file may have a part of them.
  virtual absl::Status Append(std::string_view bytes) = 0;
  // Returns when all that was appended survives the loss of power.
  virtual absl::Status Sync() = 0;
  // Bytes in the file, those of earlier processes included; 0 for what is not a regular file.
  virtual uint64_t size() const = 0;
};

// Thread-safe. Errors name the file.
class Storage {
 public:
  virtual ~Storage() = default;
  // Creates the file if there is none; its folder must be there.
  virtual absl::StatusOr<std::unique_ptr<AppendFile>> OpenToAppend(const std::string& path) = 0;
  // The bytes of the file from `offset` on. NotFound if there is no such file.
  virtual absl::StatusOr<std::string> Read(const std::string& path, uint64_t offset) = 0;
  // The file `from` takes the name, and the place, of `to` in one step. It survives the loss of
  // power when this returns. Both are in the same folder.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // OK also if there is no such file.
  virtual absl::Status Remove(const std::string& path) = 0;
};

// Gives the file `path` these bytes in one step: whatever happens, the file has its old bytes or
// all of the new ones, and the new ones survive the loss of power when this returns OK. Uses the
// file `path`.new on the way.
absl::Status ReplaceFile(Storage& storage, const std::string& path, std::string_view bytes);

// The file system.
Storage& RealStorage();
// Refuses everything: for parts of the world that keep nothing.
Storage& NoStorage();

}  // namespace epic
