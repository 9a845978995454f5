// The header of a safetensors file: u64 length, JSON, then the data buffer. Pure; reads no file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace epic::model {

struct SafetensorsLimits {
  int64_t header_bytes_max = 100'000'000;  // as the reference reader has it
  int tensor_count_max = 2'000'000;
  int name_bytes_max = 1024;
  int dimensions_max = 8;
};

struct SafetensorsEntry {
  std::string name;
  std::string_view dtype;  // one of the format's, static storage
  std::vector<int64_t> shape;
  int64_t begin = 0;  // within the file
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by begin
  int64_t data_begin = 0;
};

// `file` is the whole file; only its header is read. InvalidArgument, starting with `name`, for
// anything but a header whose tensors tile the data buffer without hole or overlap.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   const std::string& name,
                                                   const SafetensorsLimits& limits = {});

}  // namespace epic::model
