#include "text/chat_template.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "text/rust_abi.h"

namespace epic::text {
namespace {

using Json = nlohmann::ordered_json;

bool NestsDeeperThan(const Json& value, int depth_max) {
  if (!value.is_structured()) return false;
  if (depth_max == 0) return true;
  return std::any_of(value.begin(), value.end(),
                     [&](const Json& item) { return NestsDeeperThan(item, depth_max - 1); });
}

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<std::string> RequestJson(const ChatInput& input) {
  const std::pair<const char*, const Json*> fields[] = {
      {"messages", &input.messages},
      {"tools", &input.tools},
      {"template_kwargs", &input.template_kwargs}};
  std::string request =
      absl::StrCat("{\"add_generation_prompt\":", input.add_generation_prompt ? "true" : "false",
                   ",\"now\":", absl::ToUnixSeconds(input.now));
  for (const auto& [name, value] : fields) {
    if (NestsDeeperThan(*value, ChatTemplate::kNestingMax)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " nests deeper than ", ChatTemplate::kNestingMax));
    }
    absl::StrAppend(&request, ",\"", name, "\":", Dump(*value));
  }
  return request + "}";
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ChatTemplate>> ChatTemplate::Load(
    const std::string& model_folder) {
  ASSIGN_OR_RETURN(EpicTextTemplate * handle,
                   CallRust<EpicTextTemplate*>(epic_text_template_load, Slice(model_folder),
                                               kFuelMax, kTextBytesMax));
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(handle));
}

ChatTemplate::~ChatTemplate() { epic_text_template_free(handle_); }

absl::StatusOr<std::string> ChatTemplate::Render(const ChatInput& input) const {
  ASSIGN_OR_RETURN(const std::string request, RequestJson(input));
  ASSIGN_OR_RETURN(EpicTextBytes text,
                   CallRust<EpicTextBytes>(epic_text_template_render, handle_, Slice(request)));
  return Take(text);
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::RenderToTokens(const Tokenizer& tokenizer,
                                                                  const ChatInput& input) const {
  ASSIGN_OR_RETURN(const std::string request, RequestJson(input));
  ASSIGN_OR_RETURN(EpicTextIds ids, CallRust<EpicTextIds>(epic_text_template_render_ids, handle_,
                                                          tokenizer.handle(), Slice(request)));
  return Take(ids);
}

}  // namespace epic::text
