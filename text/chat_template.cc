#include "text/chat_template.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "text/rust_abi.h"

namespace epic::text {
namespace {

using Json = nlohmann::ordered_json;

// Recursion ends at depth_max, so a hostile value cannot exhaust the stack here, nor that of the
// Rust parser behind it.
bool NestsDeeperThan(const Json& value, int depth_max) {
  if (!value.is_structured()) return false;
  if (depth_max == 0) return true;
  return std::any_of(value.begin(), value.end(),
                     [&](const Json& item) { return NestsDeeperThan(item, depth_max - 1); });
}

// User text may hold bytes that are not UTF-8; they become U+FFFD, as the tokenizer reads them.
std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// The template's input crosses the C ABI as one JSON text, with the fields in the order in which
// they were given: templates print objects in that order.
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
  // A template is a program of a stranger: fuel bounds its time, kTextBytesMax what it prints.
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
  // Rendered and tokenized in one call: the Rust side knows which parts of the text are user text,
  // and those never become special tokens.
  ASSIGN_OR_RETURN(EpicTextIds ids, CallRust<EpicTextIds>(epic_text_template_render_ids, handle_,
                                                          tokenizer.handle(), Slice(request)));
  return Take(ids);
}

}  // namespace epic::text
