#include "coordinator/frontend/json_fields.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "coordinator/frontend/errors.h"

namespace epic::coordinator {
namespace {

// Counts depth and keys before anything is built. A small body of "[[[[" would exhaust the stack of
// the functions that walk the tree by recursion, and an object of many keys costs a search through
// all of them for each key. Text that is no JSON is left to the parser.
absl::Status CheckShape(std::string_view text) {
  std::vector<int> keys;  // of each open array or object
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      keys.push_back(0);
      if (keys.size() > kJsonDepthMax) {
        return absl::InvalidArgumentError(
            absl::StrCat("the JSON body is nested deeper than ", kJsonDepthMax, " levels"));
      }
    } else if ((c == '}' || c == ']') && !keys.empty()) {
      keys.pop_back();
    // Each key has one colon outside of strings.
    } else if (c == ':' && !keys.empty() && ++keys.back() > kJsonKeysMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("an object of the JSON body has more than ", kJsonKeysMax, " keys"));
    }
  }
  return absl::OkStatus();
}

// "[json.exception.parse_error.101] parse error at line …" without its first word.
std::string Reason(const std::exception& error) {
  std::string_view what = error.what();
  if (const size_t end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
  // The parser's message quotes the body, and an error must not become as long as the body.
  return std::string(what.substr(0, 300));
}

}  // namespace

absl::StatusOr<Json> ParseObject(std::string_view text) {
  if (absl::Status status = CheckShape(text); !status.ok()) return status;
  Json value;
  try {
    value = Json::parse(text);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("the body is not valid JSON: ", Reason(error)));
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the JSON body must be an object, not ", Describe(value)));
  }
  return value;
}

std::string Describe(const Json& value) {
  if (value.is_null()) return "null";
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  if (value.is_object()) return "an object";
  std::string text;
  if (value.is_string()) {
    // A short string is most likely a misspelt word, and worth a quotation; a long one is the
    // client's text, which an error need not repeat.
    const std::string& content = value.get_ref<const std::string&>();
    text = content.size() > 40 ? absl::StrCat("a string of ", content.size(), " bytes")
                               : absl::StrCat("\"", content, "\"");
  } else {
    text = value.dump();
  }
  return text;
}

const Json* FieldReader::Find(const std::string& name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<bool> FieldReader::Bool(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  WrongType(name, "true or false", *value);
  return std::nullopt;
}

std::optional<double> FieldReader::Number(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) return value->get<double>();
  WrongType(name, "a number", *value);
  return std::nullopt;
}

std::optional<int64_t> FieldReader::Integer(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  // get<int64_t> would make a negative number of it.
  if (value->is_number_unsigned() &&
      value->get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
    WrongType(name, "an integer of 64 bits", *value);
    return std::nullopt;
  }
  if (value->is_number_integer()) return value->get<int64_t>();
  // Some clients print whole numbers as 5.0. Below 1e15 each whole number is exact and the cast is
  // defined; a larger number, and NaN, gives 0 here, to which it is not equal.
  if (value->is_number_float()) {
    const double number = value->get<double>();
    const auto whole = static_cast<int64_t>(std::abs(number) < 1e15 ? number : 0.5);
    if (static_cast<double>(whole) == number) return whole;
  }
  WrongType(name, "an integer", *value);
  return std::nullopt;
}

std::optional<std::string> FieldReader::String(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  WrongType(name, "a string", *value);
  return std::nullopt;
}

std::vector<std::string> FieldReader::Strings(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  std::vector<std::string> strings;
  if (value->is_array()) {
    for (const Json& element : *value) {
      if (!element.is_string()) {
        WrongType(name, "a string or an array of strings", element);
        return {};
      }
      strings.push_back(element.get<std::string>());
    }
    return strings;
  }
  WrongType(name, "a string or an array of strings", *value);
  return {};
}

std::vector<int32_t> FieldReader::Ids(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  std::optional<std::vector<int32_t>> ids;
  if (value->is_array()) ids = ReadIds(*value);
  if (!ids) WrongType(name, "an array of token ids", *value);
  return ids.value_or(std::vector<int32_t>());
}

const Json* FieldReader::Object(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr || value->is_object()) return value;
  WrongType(name, "an object", *value);
  return nullptr;
}

const Json* FieldReader::Array(const std::string& name) {
  const Json* value = Find(name);
  if (value == nullptr || value->is_array()) return value;
  WrongType(name, "an array", *value);
  return nullptr;
}

void FieldReader::Fail(const std::string& name, const std::string& message) {
  // The first error is the one to tell: later ones may be its consequences.
  if (status_.ok()) status_ = FieldError(prefix_ + name, message);
}

void FieldReader::WrongType(const std::string& name, const std::string& wanted, const Json& value) {
  Fail(name, absl::StrCat(prefix_, name, " must be ", wanted, ", not ", Describe(value)));
}

std::optional<std::vector<int32_t>> ReadIds(const Json& array) {
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (const Json& element : array) {
    if (!element.is_number_integer()) return std::nullopt;
    const bool huge = element.is_number_unsigned() &&
                      element.get<uint64_t>() > std::numeric_limits<int32_t>::max();
    // get<int64_t> would wrap a number beyond 64 bits to some valid id. Any number beyond 32 bits
    // stands for it: the next check refuses it.
    const int64_t id = huge ? int64_t{1} << 40 : element.get<int64_t>();
    if (id < std::numeric_limits<int32_t>::min() || id > std::numeric_limits<int32_t>::max()) {
      return std::nullopt;
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace epic::coordinator
