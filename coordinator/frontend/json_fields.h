// Reads JSON that a client has sent, and that may therefore be anything.
//
//   ASSIGN_OR_RETURN(Json body, ParseObject(text));
//   FieldReader fields(body);
//   std::optional<double> temperature = fields.Number("temperature");
//   bool stream = fields.Bool("stream").value_or(false);
//   RETURN_IF_ERROR(fields.status());                  // the first thing wrong, by name
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace epic::coordinator {

using Json = nlohmann::ordered_json;

constexpr int kJsonDepthMax = 64;
constexpr int kJsonKeysMax = 1024;  // of one object: ordered_json looks keys up one by one

// Parses an object. InvalidArgument, saying where, for what is not JSON in valid UTF-8, is nested
// deeper than kJsonDepthMax, or holds an object with more than kJsonKeysMax keys.
absl::StatusOr<Json> ParseObject(std::string_view text);

// "a string", "an array of 3" …: what a value is, for messages.
std::string Describe(const Json& value);

// Reads typed fields. A field that is absent or null is nullopt. A field of a wrong type is
// nullopt too, and makes status() an error that names it; only the first error is kept.
class FieldReader {
 public:
  // `object` outlives this. Names in messages get `prefix` ("stream_options.").
  explicit FieldReader(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // nullptr: absent or null.
  const Json* Find(const std::string& name) const;

  std::optional<bool> Bool(const std::string& name);
  std::optional<double> Number(const std::string& name);
  std::optional<int64_t> Integer(const std::string& name);
  std::optional<std::string> String(const std::string& name);
  // A string, or an array of strings.
  std::vector<std::string> Strings(const std::string& name);
  // An array of token ids.
  std::vector<int32_t> Ids(const std::string& name);
  const Json* Object(const std::string& name);
  const Json* Array(const std::string& name);

  void Fail(const std::string& name, const std::string& message);
  const absl::Status& status() const { return status_; }

 private:
  void WrongType(const std::string& name, const std::string& wanted, const Json& value);

  const Json& object_;
  std::string prefix_;
  absl::Status status_;
};

// The ids of an array whose elements are all integers of 32 bits; nullopt otherwise.
std::optional<std::vector<int32_t>> ReadIds(const Json& array);

}  // namespace epic::coordinator
