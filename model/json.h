// JSON from files that nobody vouches for: bounded depth, no duplicate keys, no exceptions; and
// typed fields with their limits.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace epic::model {

inline constexpr int kJsonDepthMax = 32;

// InvalidArgument, starting with `source`, for text that is not one JSON value in UTF-8, nests
// deeper than kJsonDepthMax or repeats a key.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& source);

// NotFound if there is no such file; InvalidArgument if it is not a regular file of at most
// `bytes_max`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t bytes_max);

// The fields of an object. A field has one or more spellings; null is the same as absent. The
// first thing wrong is kept in status(), and what is returned then means nothing.
class JsonFields {
 public:
  using Names = std::initializer_list<const char*>;

  // `object` outlives the fields; one that is no object is an error.
  JsonFields(const nlohmann::json& object, std::string source);

  bool Has(Names names) const { return Find(names) != nullptr; }
  const nlohmann::json* Find(Names names) const;

  // Without `fallback` the field must be there.
  int Int(Names names, int low, int high, std::optional<int> fallback = {});
  double Real(Names names, double low, double high, std::optional<double> fallback = {});
  bool Bool(Names names, bool fallback);
  std::string String(Names names, const std::string& fallback);
  // An id, a list of ids, or nothing; ascending, each once.
  std::vector<int32_t> Ids(Names names, int32_t high);

  void Fail(absl::Status status);
  // Fails as Unimplemented: the field's value is not served, but `served` is.
  void NotServed(const char* field, const std::string& value, const char* served);
  const std::string& source() const { return source_; }
  const absl::Status& status() const { return status_; }

 private:
  void Invalid(const char* name, const nlohmann::json& value, const std::string& must);

  const nlohmann::json& object_;
  std::string source_;
  absl::Status status_;
};

}  // namespace epic::model
