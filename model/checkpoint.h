// Checkpoint: the tensors of a Hugging Face folder (model.safetensors, or the shards that
// model.safetensors.index.json lists), mapped read-only. Everything a hostile file could say is
// checked in Open; what it hands out lies within its file.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(folder));
//   const CheckpointTensor* norm = checkpoint->Find("model.norm.weight");
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/safetensors.h"

namespace epic::model {

struct CheckpointTensor {
  std::string_view dtype;  // as the format spells it: "BF16", "F8_E4M3", …
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // mapped; may be unaligned

  // "BF16 [3, 4]", for messages.
  std::string ToString() const;
};

// Immutable after Open; thread-safe.
class Checkpoint {
 public:
  // NotFound, or InvalidArgument naming file, tensor, value and limit.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder);

  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  // Null if there is none. The pointer lives as long as the checkpoint.
  const CheckpointTensor* Find(std::string_view name) const;
  const std::map<std::string, CheckpointTensor, std::less<>>& tensors() const { return tensors_; }
  int64_t tensor_bytes() const;

  // 16 hex digits over config.json and every file's header and size: which weights these are.
  const std::string& fingerprint() const { return fingerprint_; }
  // What is odd but harmless, one line each.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // Gives the pages of a part of a file back to the system; a later read maps them again.
  static void Release(const void* data, int64_t bytes);

 private:
  Checkpoint() = default;
  absl::Status OpenShards(const std::string& folder);
  // Maps a file. Its tensors join tensors_, but not those that `shard_of` places elsewhere.
  absl::Status AddFile(const std::string& folder, const std::string& name,
                       const std::map<std::string, std::string, std::less<>>* shard_of);

  std::vector<std::span<const std::byte>> files_;
  uint64_t hash_ = 0;
  std::map<std::string, CheckpointTensor, std::less<>> tensors_;
  std::vector<std::string> warnings_;
  std::string fingerprint_;
};

}  // namespace epic::model
