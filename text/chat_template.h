// ChatTemplate: the Jinja chat template of a model folder, in the environment that Hugging Face
// renders it in (trim_blocks, lstrip_blocks, loop controls, Python's string methods, tojson with
// key order kept and ", " ": " separators, raise_exception, strftime_now, namespace, range, dict;
// variables messages, tools, documents, add_generation_prompt, bos_token, eos_token and those of
// template_kwargs).
//
// What a client says stays text. Every string within messages, tools and template_kwargs (keys too)
// that spells an added token, or could form one together with its neighbours, is framed by guards
// (the noncharacters U+FDD0 and U+FDD1; a client's own become U+FFFD) before the template runs. The
// guards stand around "</think>", not within it, so that the template's own `'</think>' in content`
// and `content.split('</think>')` still work; split, strip, trim, startswith, endswith and replace
// look through them. Afterwards a framed occurrence is encoded as plain text with the text around
// it, an unframed one, printed by the template, is its token, and the guards are gone. Known limit:
// a template that cuts strings by index or joins them by name (`'<|' + message.name + '|>'`) sees
// the guards in them; it can print wrong text but no token that the client chose. message.role and
// .type are the exception: names such as "user" pass unguarded, as templates may build markers from
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "text/tokenizer.h"

struct EpicTextTemplate;

namespace epic::text {

// ordered_json: templates print tools with their keys in the order the client gave them.
struct ChatInput {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools;            // an array, or null for none
  nlohmann::ordered_json template_kwargs;  // an object, or null for none
  bool add_generation_prompt = true;
  absl::Time now = absl::UnixEpoch();  // what strftime_now tells, in UTC
};

// Immutable after Load, so any thread may call anything.
class ChatTemplate {
 public:
  // chat_template.jinja wins over "chat_template" of tokenizer_config.json: a string or a list of
  // {name, template}, of which "tool_use" serves requests with tools and "default" all others.
  // NotFound: the folder has no template. InvalidArgument: a template that cannot be parsed.
  static absl::StatusOr<std::shared_ptr<const ChatTemplate>> Load(const std::string& model_folder);
  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // The prompt as text. InvalidArgument: the template raised an error (its message), it met a value
  // of a wrong type, it ran over kFuelMax steps or kTextBytesMax of output, or the input nests
  // deeper than kNestingMax. What a template holds in its own variables is not bounded beyond its
  // steps: templates are trusted as the model is, clients are not.
  absl::StatusOr<std::string> Render(const ChatInput& input) const;

  // The prompt as token ids, without begin-of-sentence beyond what the template prints. Errors as
  // above. `tokenizer` is the one of the same folder.
  absl::StatusOr<std::vector<int32_t>> RenderToTokens(const Tokenizer& tokenizer,
                                                      const ChatInput& input) const;

  static constexpr uint64_t kFuelMax = 20'000'000;
  static constexpr uint64_t kTextBytesMax = 64 << 20;
  static constexpr int kNestingMax = 100;

 private:
  explicit ChatTemplate(EpicTextTemplate* handle) : handle_(handle) {}

  EpicTextTemplate* handle_;  // owned
};

}  // namespace epic::text
