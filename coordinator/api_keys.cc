#include "coordinator/api_keys.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::coordinator {
namespace {

// `separators`: those of the source, beside white space around a key.
absl::Status AddKeys(const std::string& source, const std::string& text,
                     const std::string& separators, std::vector<std::string>* keys) {
  CHECK(keys != nullptr);
  const size_t count = keys->size();
  size_t at = 0;
  // The last key needs no separator behind it.
  while (at <= text.size()) {
    const size_t end = std::min(text.find_first_of(separators, at), text.size());
    std::string key = text.substr(at, end - at);
    at = end + 1;
    // A file that was written on Windows ends its lines in \r, which no client would send.
    key.erase(0, std::min(key.find_first_not_of(" \t\r"), key.size()));
    key.erase(key.find_last_not_of(" \t\r") + 1);
    if (key.empty()) continue;
    // A comma separates keys in the environment, so a key with one would not come through it.
    const bool fine = std::ranges::all_of(key, [](char c) { return c > ' ' && c < 0x7f; }) &&
                      key.find(',') == key.npos;
    if (!fine) {
      // The message must not hold the key: errors end up in logs.
      return absl::InvalidArgumentError(absl::StrCat(
          source, ": a key of ", key.size(), " bytes is not visible ASCII without commas"));
    }
    keys->push_back(std::move(key));
  }
  if (keys->size() > count) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(source, ": there is no key in it, and an empty one would let everybody in"));
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadApiKeys(const ApiKeySources& sources) {
  std::vector<std::string> keys;
  for (const std::string& flag : sources.flags) {
    RETURN_IF_ERROR(AddKeys("--api-key", flag, "\n", &keys));
  }
  if (!sources.file.empty()) {
    std::ifstream file(sources.file, std::ios::binary);
    // A folder opens, but cannot be read.
    if (!file || std::filesystem::is_directory(sources.file)) {
      return absl::FailedPreconditionError(
          absl::StrCat("--api-key-file: cannot read a key from ", sources.file));
    }
    std::ostringstream text;
    text << file.rdbuf();
    const std::string source = absl::StrCat("--api-key-file ", sources.file);
    RETURN_IF_ERROR(AddKeys(source, text.str(), "\n", &keys));
  }
  if (sources.several != nullptr) {
    RETURN_IF_ERROR(AddKeys(kApiKeysVariable, sources.several, ",\n", &keys));
  }
  if (sources.single != nullptr) {
    RETURN_IF_ERROR(AddKeys(kApiKeyVariable, sources.single, "\n", &keys));
  }
  return keys;
}

}  // namespace epic::coordinator
