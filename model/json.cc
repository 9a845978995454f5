#include "model/json.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace epic::model {
namespace {

using nlohmann::json;

constexpr int64_t kJsonValuesMax = 10'000'000;

// Before anything is built: how deep it nests and how many values there can be.
absl::Status CheckBounds(std::string_view text, const std::string& source) {
  int depth = 0;
  int64_t values = 1;  // each value but the first of its list follows a comma
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      // The escaped character, which may be a quote.
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    in_string = c == '"';
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (c == ',') ++values;
    if (depth > kJsonDepthMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": JSON nests deeper than ", kJsonDepthMax));
    }
    if (values > kJsonValuesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": JSON holds more than ", kJsonValuesMax, " values"));
    }
  }
  return absl::OkStatus();
}

std::string Shown(const json& value) {
  return value.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 60);
}

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, const std::string& source) {
  if (absl::Status bounds = CheckBounds(text, source); !bounds.ok()) return bounds;
  // nlohmann keeps the last of two equal keys in silence. Two shapes for one tensor are a broken or
  // hostile file, so keys are watched, one set for each object that is open.
  std::vector<std::set<std::string>> keys;
  std::string repeated;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) {
      std::string key = parsed.get<std::string>();
      if (!keys.back().insert(key).second && repeated.empty()) repeated = key.substr(0, 100);
    }
    return true;
  };
  // The library throws; no exception leaves this function.
  try {
    json value = json::parse(text, watch);
    if (!repeated.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(source, ": key \"", repeated, "\" repeats"));
    }
    return value;
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, " is not JSON: ", std::string(error.what()).substr(0, 200)));
  }
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t bytes_max) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return absl::NotFoundError(absl::StrCat("no file ", path));
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  // Before the allocation: a file of any size may stand under this name.
  if (info.st_size > bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has ", int64_t{info.st_size},
                                                   " bytes; at most ", bytes_max, " are read"));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(info.st_size, '\0');
  // A file that shrinks between stat and read fails here and is reported.
  file.read(text.data(), info.st_size);
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, " cannot be read"));
  return text;
}

JsonFields::JsonFields(const json& object, std::string source)
    : object_(object), source_(std::move(source)) {
  if (!object.is_object()) {
    Fail(absl::InvalidArgumentError(
        absl::StrCat(source_, " is ", object.type_name(), "; it must be an object")));
  }
}

const json* JsonFields::Find(Names names) const {
  if (!object_.is_object()) return nullptr;
  for (const char* name : names) {
    const auto found = object_.find(name);
    // null counts as absent: published files write it for "not used".
    if (found != object_.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

void JsonFields::Fail(absl::Status status) {
  // The first error is the one worth reading; later ones often follow from it.
  if (status_.ok()) status_ = std::move(status);
}

void JsonFields::NotServed(const char* field, const std::string& value, const char* served) {
  Fail(absl::UnimplementedError(absl::StrCat(source_, ": ", field, " \"", value.substr(0, 60),
                                             "\" is not served; it must be ", served)));
}

void JsonFields::Invalid(const char* name, const json& value, const std::string& must) {
  Fail(absl::InvalidArgumentError(
      absl::StrCat(source_, ": ", name, " is ", Shown(value), "; it must be ", must)));
}

int JsonFields::Int(Names names, int low, int high, std::optional<int> fallback) {
  const json* value = Find(names);
  if (value == nullptr) {
    if (!fallback) {
      Fail(absl::InvalidArgumentError(absl::StrCat(source_, ": ", *names.begin(), " is missing")));
    }
    return fallback.value_or(low);
  }
  const double number = value->is_number() ? value->get<double>() : NAN;
  // Written so that NaN fails. A whole number may be spelled 1e3 or 8.0.
  if (!(number >= low && number <= high) || number != std::floor(number)) {
    Invalid(*names.begin(), *value, absl::StrCat("a whole number in ", low, " .. ", high));
    return low;
  }
  return static_cast<int>(number);
}

double JsonFields::Real(Names names, double low, double high, std::optional<double> fallback) {
  const json* value = Find(names);
  if (value == nullptr) {
    if (!fallback) {
      Fail(absl::InvalidArgumentError(absl::StrCat(source_, ": ", *names.begin(), " is missing")));
    }
    return fallback.value_or(low);
  }
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= low && number <= high)) {
    Invalid(*names.begin(), *value, absl::StrCat("a number in ", low, " .. ", high));
    return low;
  }
  return number;
}

bool JsonFields::Bool(Names names, bool fallback) {
  const json* value = Find(names);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    Invalid(*names.begin(), *value, "true or false");
    return fallback;
  }
  return value->get<bool>();
}

std::string JsonFields::String(Names names, const std::string& fallback) {
  const json* value = Find(names);
  if (value == nullptr) return fallback;
  if (!value->is_string()) {
    Invalid(*names.begin(), *value, "a string");
    return fallback;
  }
  return value->get<std::string>();
}

std::vector<int32_t> JsonFields::Ids(Names names, int32_t high) {
  const json* value = Find(names);
  if (value == nullptr) return {};
  // A single id and a list mean the same; both are published.
  const json list = value->is_array() ? *value : json::array({*value});
  std::set<int32_t> ids;
  for (const json& each : list) {
    // Unsigned: a negative id must not wrap into the range.
    const bool fits = each.is_number_unsigned() && each.get<uint64_t>() <= uint64_t(high);
    if (!fits || list.size() > 1000) {
      Invalid(*names.begin(), *value,
              absl::StrCat("an id in 0 .. ", high, " or a list of at most 1000"));
      return {};
    }
    ids.insert(each.get<int32_t>());
  }
  return {ids.begin(), ids.end()};
}

}  // namespace epic::model
