#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "model/json.h"

namespace epic::model {
namespace {

using nlohmann::json;

constexpr int64_t kLengthBytes = 8;
// JSON numbers are doubles for many writers; beyond 2^53 they would not be whole.
constexpr uint64_t kNumberMax = uint64_t{1} << 53;

struct DTypeBits {
  std::string_view name;
  int bits;
};
// All types of the format, so that a file with one that EPIC does not serve is still read: what a
// tensor must be is the binder's question (model/weight_types.cc).
constexpr DTypeBits kDTypes[] = {
    {"BOOL", 8},    {"U8", 8},          {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},
    {"F16", 16},    {"BF16", 16},       {"I32", 32},        {"U32", 32},    {"F32", 32},
    {"F64", 64},    {"I64", 64},        {"U64", 64},        {"C64", 64},    {"F4", 4},
    {"F6_E2M3", 6}, {"F6_E3M2", 6}};

class HeaderParser {
 public:
  HeaderParser(const std::string& name, const SafetensorsLimits& limits, int64_t data_begin,
               int64_t data_bytes)
      : name_(name), limits_(limits), data_begin_(data_begin), data_bytes_(data_bytes) {}

  absl::StatusOr<std::vector<SafetensorsEntry>> Parse(const json& header) const {
    std::vector<SafetensorsEntry> entries;
    if (!header.is_object()) return Invalid("the header is not an object");
    // Bounded before anything is allocated for the entries.
    if (header.size() > static_cast<size_t>(limits_.tensor_count_max)) {
      return Invalid("the header lists ", header.size(), " tensors; the limit is ",
                     limits_.tensor_count_max);
    }
    for (const auto& [key, value] : header.items()) {
      if (key == "__metadata__") {
        RETURN_IF_ERROR(CheckMetadata(value));
        continue;
      }
      ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(key, value));
      entries.push_back(std::move(entry));
    }
    // The order of a JSON object says nothing about the order of bytes.
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    RETURN_IF_ERROR(CheckTiling(entries));
    return entries;
  }

 private:
  template <typename... Parts>
  absl::Status Invalid(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": ", parts...));
  }

  absl::Status CheckMetadata(const json& value) const {
    if (!value.is_object()) return Invalid("__metadata__ is not an object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) return Invalid("__metadata__.", key, " is not a string");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<int64_t>> Numbers(const std::string& tensor, const json& value,
                                               const char* field, size_t count_max) const {
    if (!value.is_array()) return Invalid("tensor ", tensor, ": ", field, " is not a list");
    if (value.size() > count_max) {
      return Invalid("tensor ", tensor, ": ", field, " has ", value.size(),
                     " numbers; the limit is ", count_max);
    }
    std::vector<int64_t> numbers;
    for (const json& each : value) {
      if (!each.is_number_unsigned() || each.get<uint64_t>() > kNumberMax) {
        return Invalid("tensor ", tensor, ": ", field, " holds ", each.dump().substr(0, 40),
                       "; it must be a whole number in 0 .. 2^53");
      }
      numbers.push_back(static_cast<int64_t>(each.get<uint64_t>()));
    }
    return numbers;
  }

  absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& tensor, const json& value) const {
    if (tensor.empty() || tensor.size() > static_cast<size_t>(limits_.name_bytes_max)) {
      return Invalid("a tensor's name has ", tensor.size(), " bytes; it must be 1 .. ",
                     limits_.name_bytes_max);
    }
    if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
        !value.contains("shape") || !value.contains("data_offsets")) {
      return Invalid("tensor ", tensor, " must be an object of dtype, shape and data_offsets");
    }
    SafetensorsEntry entry{.name = tensor};
    ASSIGN_OR_RETURN(const int bits, FindDType(tensor, value["dtype"], entry.dtype));
    ASSIGN_OR_RETURN(entry.shape, Numbers(tensor, value["shape"], "shape", limits_.dimensions_max));
    ASSIGN_OR_RETURN(const std::vector<int64_t> offsets,
                     Numbers(tensor, value["data_offsets"], "data_offsets", 2));
    // Checked against the file before anyone computes an address from them.
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes_) {
      return Invalid("tensor ", tensor, ": data_offsets are [", absl::StrJoin(offsets, ", "),
                     "]; they must ascend within the ", data_bytes_, " bytes of data",
                     " (is the file truncated?)");
    }
    RETURN_IF_ERROR(CheckSize(entry, bits, offsets[1] - offsets[0]));
    entry.begin = data_begin_ + offsets[0];
    entry.end = data_begin_ + offsets[1];
    return entry;
  }

  absl::StatusOr<int> FindDType(const std::string& tensor, const json& value,
                                std::string_view& dtype) const {
    if (!value.is_string()) return Invalid("tensor ", tensor, ": dtype is not a string");
    const auto& text = value.get_ref<const std::string&>();
    for (const DTypeBits& each : kDTypes) {
      if (each.name != text) continue;
      dtype = each.name;
      return each.bits;
    }
    return Invalid("tensor ", tensor, ": dtype \"", text.substr(0, 40), "\" is unknown");
  }

  absl::Status CheckSize(const SafetensorsEntry& entry, int bits, int64_t bytes) const {
    const bool empty = std::ranges::find(entry.shape, 0) != entry.shape.end();
    // In bits, for types narrower than a byte. A size of zero makes the tensor empty even where the
    // other sizes would overflow.
    int64_t total_bits = empty ? 0 : bits;
    for (int64_t size : entry.shape) {
      if (__builtin_mul_overflow(total_bits, size, &total_bits)) {
        return Invalid("tensor ", entry.name, ": the shape [", absl::StrJoin(entry.shape, ", "),
                       "] overflows");
      }
    }
    // The size must be exact: a tensor that is too long would hide bytes that no one reads.
    if (total_bits % 8 != 0 || total_bits / 8 != bytes) {
      return Invalid("tensor ", entry.name, ": data_offsets span ", bytes, " bytes; ",
                     std::string(entry.dtype), " [", absl::StrJoin(entry.shape, ", "), "] takes ",
                     (total_bits + 7) / 8);
    }
    return absl::OkStatus();
  }

  absl::Status CheckTiling(const std::vector<SafetensorsEntry>& entries) const {
    int64_t at = data_begin_;
    // The format allows no gaps and no overlaps: either is a sign of a damaged or hostile file.
    for (const SafetensorsEntry& entry : entries) {
      if (entry.begin != at) {
        return Invalid("tensor ", entry.name, " begins at byte ", entry.begin - data_begin_,
                       " of the data, but the tensors before it end at ", at - data_begin_,
                       entry.begin < at ? " (they overlap)" : " (there is a hole)");
      }
      at = entry.end;
    }
    if (at != data_begin_ + data_bytes_) {
      return Invalid("the tensors end at byte ", at - data_begin_, " of the data, which has ",
                     data_bytes_);
    }
    return absl::OkStatus();
  }

  const std::string& name_;
  const SafetensorsLimits& limits_;
  int64_t data_begin_;
  int64_t data_bytes_;
};

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   const std::string& name,
                                                   const SafetensorsLimits& limits) {
  const auto file_bytes = static_cast<int64_t>(file.size());
  if (file_bytes < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", file_bytes, " bytes; a safetensors file has at least 8"));
  }
  uint64_t length = 0;
  // Little-endian, as every machine that EPIC runs on.
  std::memcpy(&length, file.data(), kLengthBytes);
  // Before the addition below, which could overflow.
  if (length > static_cast<uint64_t>(limits.header_bytes_max)) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": the header claims ", length, " bytes; the limit is ", limits.header_bytes_max));
  }
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(length);
  if (data_begin > file_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": the header claims ", length,
                                                   " bytes, but the file has ", file_bytes,
                                                   " (is it truncated?)"));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  // The format says so, and it keeps other files from being parsed as a header.
  if (text.empty() || text[0] != '{') {
    return absl::InvalidArgumentError(absl::StrCat(name, ": the header does not start with {"));
  }
  ASSIGN_OR_RETURN(const json header, ParseJson(text, absl::StrCat(name, ": the header")));
  const HeaderParser parser(name, limits, data_begin, file_bytes - data_begin);
  SafetensorsHeader result{.data_begin = data_begin};
  ASSIGN_OR_RETURN(result.entries, parser.Parse(header));
  return result;
}

}  // namespace epic::model
