#include "model/checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"
#include "model/json.h"

namespace epic::model {
namespace {

constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
// Limits of what a stranger's folder may make this process read or keep. DeepSeek-V3's index
// has about 9 MB and names 163 shards.
constexpr int64_t kIndexBytesMax = 100'000'000;
constexpr int64_t kConfigBytesMax = 4 << 20;
constexpr size_t kShardCountMax = 10'000;
constexpr size_t kWarningsMax = 20;

uint64_t Hash(uint64_t hash, const void* data, size_t bytes) {  // FNV-1a
  const auto* at = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ at[i]) * 0x100000001b3u;
  return hash;
}

absl::StatusOr<std::span<const std::byte>> MapFile(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer; fstat refuses it afterwards.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
  }
  struct stat info;
  void* mapping = MAP_FAILED;
  const bool regular = fstat(file, &info) == 0 && S_ISREG(info.st_mode);
  if (regular && info.st_size > 0) {
    // A file that shrinks later would raise SIGBUS, on either kind of mapping: checkpoints must not
    // be changed in place while they are served.
    mapping = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  }
  // The mapping keeps the file alive.
  close(file);
  if (!regular) return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  if (info.st_size == 0) return absl::InvalidArgumentError(absl::StrCat(path, " is empty"));
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot map ", path));
  }
  return std::span(static_cast<const std::byte*>(mapping), static_cast<size_t>(info.st_size));
}

// A shard is beside its index. A path would let an index read any file of the machine.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

}  // namespace

std::string CheckpointTensor::ToString() const {
  return absl::StrCat(std::string(dtype), " [", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  ASSIGN_OR_RETURN(const std::string config,
                   ReadTextFile(absl::StrCat(folder, "/config.json"), kConfigBytesMax));
  // FNV-1a's offset basis.
  checkpoint->hash_ = Hash(0xcbf29ce484222325u, config.data(), config.size());
  if (Exists(absl::StrCat(folder, "/", kSingleName))) {
    RETURN_IF_ERROR(checkpoint->AddFile(folder, kSingleName, nullptr));
  } else if (Exists(absl::StrCat(folder, "/", kIndexName))) {
    RETURN_IF_ERROR(checkpoint->OpenShards(folder));
  } else {
    return absl::NotFoundError(
        absl::StrCat(folder, " holds neither ", kSingleName, " nor ", kIndexName));
  }
  checkpoint->fingerprint_ = absl::StrCat(absl::Hex(checkpoint->hash_, absl::kZeroPad16));
  return checkpoint;
}

Checkpoint::~Checkpoint() {
  for (std::span<const std::byte> file : files_) {
    munmap(const_cast<std::byte*>(file.data()), file.size());
  }
}

absl::Status Checkpoint::OpenShards(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadTextFile(absl::StrCat(folder, "/", kIndexName), kIndexBytesMax));
  ASSIGN_OR_RETURN(const nlohmann::json index, ParseJson(text, kIndexName));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kIndexName, ": weight_map must be an object of tensor name → shard"));
  }
  std::map<std::string, std::string, std::less<>> shard_of;
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(kIndexName, ": the shard of ", tensor.substr(0, 100), " is ",
                       shard.dump(-1, ' ', true).substr(0, 100), "; it must be a plain file name"));
    }
    shard_of[tensor] = shard.get<std::string>();
    shards.insert(shard.get<std::string>());
  }
  if (shards.size() > kShardCountMax) {
    return absl::InvalidArgumentError(absl::StrCat(kIndexName, " names ", shards.size(),
                                                   " shards; the limit is ", kShardCountMax));
  }
  // In order of name, so that the fingerprint does not depend on the order of the index.
  for (const std::string& shard : shards) RETURN_IF_ERROR(AddFile(folder, shard, &shard_of));
  // Every entry is checked now: a missing tensor must not be found after minutes of loading.
  for (const auto& [tensor, shard] : shard_of) {
    if (Find(tensor) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(kIndexName, " places tensor ", tensor, " in ",
                                                     shard, ", which does not hold it"));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::AddFile(const std::string& folder, const std::string& name,
                                 const std::map<std::string, std::string, std::less<>>* shard_of) {
  ASSIGN_OR_RETURN(const std::span<const std::byte> file, MapFile(absl::StrCat(folder, "/", name)));
  files_.push_back(file);
  ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensors(file, name));
  const uint64_t size = file.size();
  // The fingerprint covers each file's size and header, not its data: it must be there before
  // anything is loaded, and a changed tensor of the same shape is found by the experts' own hashes.
  hash_ = Hash(hash_, &size, sizeof(size));
  hash_ = Hash(hash_, file.data(), header.data_begin);
  for (SafetensorsEntry& entry : header.entries) {
    // Published shards sometimes hold tensors that the index places elsewhere. The index decides.
    if (shard_of != nullptr) {
      // A list of warnings is bounded: a broken index may disagree about every tensor.
      const auto place = shard_of->find(entry.name);
      if (place == shard_of->end() || place->second != name) {
        if (warnings_.size() < kWarningsMax) {
          warnings_.push_back(absl::StrCat("tensor ", entry.name, " of ", name,
                                           " is not its by the index: ignored"));
        }
        continue;
      }
    }
    CheckpointTensor tensor{.dtype = entry.dtype,
                            .shape = std::move(entry.shape),
                            .bytes = file.subspan(entry.begin, entry.end - entry.begin)};
    tensors_.emplace(std::move(entry.name), std::move(tensor));
  }
  return absl::OkStatus();
}

const CheckpointTensor* Checkpoint::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

int64_t Checkpoint::tensor_bytes() const {
  int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += static_cast<int64_t>(tensor.bytes.size());
  return total;
}

void Checkpoint::Release(const void* data, int64_t bytes) {
  CHECK(data != nullptr && bytes > 0) << " bytes " << bytes;
  // madvise wants whole pages, so the first is rounded down: dropping a neighbour's bytes costs one
  // more read and nothing else, since a file is mapped.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace epic::model
