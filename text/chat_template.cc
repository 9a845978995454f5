#include "text/chat_template.h"

#include "base/status.h"
#include "text/rust_abi.h"

namespace epic::text {
namespace {

std::string RequestJson(const ChatInput& input) {
  nlohmann::ordered_json request;
  request["messages"] = input.messages;
  request["tools"] = input.tools;
  request["template_kwargs"] = input.template_kwargs;
  request["add_generation_prompt"] = input.add_generation_prompt;
  request["now"] = absl::ToUnixSeconds(input.now);
  return request.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
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
  ASSIGN_OR_RETURN(EpicTextBytes text, CallRust<EpicTextBytes>(epic_text_template_render, handle_,
                                                               Slice(RequestJson(input))));
  return Take(text);
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::RenderToTokens(const Tokenizer& tokenizer,
                                                                  const ChatInput& input) const {
  ASSIGN_OR_RETURN(EpicTextIds ids,
                   CallRust<EpicTextIds>(epic_text_template_render_ids, handle_, tokenizer.handle(),
                                         Slice(RequestJson(input))));
  return Take(ids);
}

}  // namespace epic::text
