#include "coordinator/frontend/chat_messages.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/frontend/errors.h"

namespace epic::coordinator {
namespace {

absl::StatusOr<std::string> JoinParts(const Json& parts, const std::string& field) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string name = absl::StrCat(field, "[", i, "]");
    if (!parts[i].is_object()) {
      return FieldError(name, absl::StrCat(name, " must be an object, not ", Describe(parts[i])));
    }
    FieldReader part(parts[i], name + ".");
    const std::string type = part.String("type").value_or("");
    const std::optional<std::string> piece = part.String("text");
    RETURN_IF_ERROR(part.status());
    // An image or a sound would change the answer, so such a part is refused and never dropped.
    // Only the beginning of the client's own text comes back to it.
    if (type != "text") {
      return FieldError(name + ".type", absl::StrCat(name, ".type is \"", type.substr(0, 40),
                                                     "\"; only \"text\" is supported"));
    }
    if (!piece) return FieldError(name + ".text", absl::StrCat(name, ".text is missing"));
    absl::StrAppend(&text, i == 0 ? "" : "\n", *piece);
  }
  return text;
}

absl::StatusOr<std::string> ReadRole(FieldReader& fields, const std::string& prefix) {
  const std::optional<std::string> role = fields.String("role");
  RETURN_IF_ERROR(fields.status());
  if (!role) return FieldError(prefix + "role", absl::StrCat(prefix, "role is missing"));
  // "developer" is OpenAI's newer name for the system's role, and templates are written for the
  // older one.
  if (*role == "developer") return std::string("system");
  if (*role == "system" || *role == "user" || *role == "assistant" || *role == "tool") return *role;
  return FieldError(prefix + "role",
                    absl::StrCat(prefix, "role is \"", role->substr(0, 40),
                                 "\", it must be system, developer, user, ", "assistant or tool"));
}

absl::Status ReadContent(FieldReader& fields, const std::string& prefix, const std::string& role,
                         Json* message) {
  const Json* content = fields.Find("content");
  if (content == nullptr) {
    if (role != "assistant") {
      return FieldError(prefix + "content", absl::StrCat(prefix, "content is missing"));
    }
    // An assistant's message may consist of reasoning or calls alone. Templates know a message of
    // calls by its null content; where there are no calls they cut the content as a string, so it
    // must be one.
    (*message)["content"] = message->contains("tool_calls") ? Json() : Json("");
  } else if (content->is_array()) {
    ASSIGN_OR_RETURN((*message)["content"], JoinParts(*content, prefix + "content"));
  } else if (content->is_string()) {
    (*message)["content"] = *content;
  } else {
    fields.Fail("content", absl::StrCat(prefix, "content must be a string or an array of text ",
                                        "parts, not ", Describe(*content)));
  }
  return fields.status();
}

absl::StatusOr<Json> ReadMessage(const Json& given, const std::string& prefix) {
  // Only the fields that are read here reach the template. Others are ignored, as in all requests.
  FieldReader fields(given, prefix);
  ASSIGN_OR_RETURN(const std::string role, ReadRole(fields, prefix));
  Json message = {{"role", role}};
  for (const char* name : {"name", "tool_call_id"}) {
    if (const auto value = fields.String(name)) message[name] = *value;
  }
  // Some clients send an empty list for "no calls", and some templates only ask whether the field
  // is there.
  if (const Json* calls = fields.Array("tool_calls"); calls != nullptr && !calls->empty()) {
    message["tool_calls"] = *calls;
  }
  // DeepSeek's name for the field goes before vLLM's newer one. A template may read either.
  std::optional<std::string> reasoning = fields.String("reasoning_content");
  if (!reasoning) reasoning = fields.String("reasoning");
  if (reasoning) message["reasoning_content"] = message["reasoning"] = *reasoning;
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(ReadContent(fields, prefix, role, &message));
  return message;
}

}  // namespace

absl::StatusOr<Json> ReadMessages(const Json& messages, int message_count_max) {
  if (messages.empty()) return FieldError("messages", "messages is empty; it needs one message");
  if (static_cast<int64_t>(messages.size()) > message_count_max) {
    return FieldError("messages", absl::StrCat("messages has ", messages.size(),
                                               " elements, at most ", message_count_max));
  }
  Json read = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string name = absl::StrCat("messages[", i, "]");
    if (!messages[i].is_object()) {
      return FieldError(name,
                        absl::StrCat(name, " must be an object, not ", Describe(messages[i])));
    }
    ASSIGN_OR_RETURN(Json message, ReadMessage(messages[i], name + "."));
    read.push_back(std::move(message));
  }
  return read;
}

}  // namespace epic::coordinator
