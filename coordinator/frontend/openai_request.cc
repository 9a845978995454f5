#include "coordinator/frontend/openai_request.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/frontend/chat_messages.h"
#include "coordinator/frontend/errors.h"
#include "coordinator/frontend/request_builder.h"
#include "coordinator/frontend/sampling.h"

namespace epic::coordinator {
namespace {

// Fields that would change the answer and that EPIC does not have. Null, false, "", [] and {} ask
// for nothing, so they pass.
constexpr const char* kUnsupported[] = {"allowed_token_ids",
                                        "audio",
                                        "bad_words",
                                        "best_of",
                                        "chat_template",
                                        "continue_final_message",
                                        "documents",
                                        "function_call",
                                        "functions",
                                        "grammar",
                                        "guided_choice",
                                        "guided_grammar",
                                        "guided_json",
                                        "guided_regex",
                                        "include_stop_str_in_output",
                                        "json_schema",
                                        "logit_bias",
                                        "logits_processors",
                                        "prompt_embeds",
                                        "prompt_logprobs",
                                        "regex",
                                        "structural_tag",
                                        "structured_outputs",
                                        "suffix",
                                        "thinking_token_budget",
                                        "truncate_prompt_tokens",
                                        "use_beam_search",
                                        "web_search_options"};

bool AsksForNothing(const Json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  if (value.is_structured()) return value.empty();
  return value.is_null() || value == false;
}

absl::Status CheckSupported(const Json& body, FieldReader& fields) {
  for (const char* name : kUnsupported) {
    const Json* value = fields.Find(name);
    if (value == nullptr || AsksForNothing(*value)) continue;
    // best_of that equals n leaves nothing to choose from.
    if (std::string_view(name) == "best_of" && *value == body.value("n", Json(1))) continue;
    fields.Fail(name, absl::StrCat(name, " is ", Describe(*value), ", but this server does not ",
                                   "support ", name));
  }
  // EPIC does all this in any case, so true asks for nothing.
  for (const char* name : {"include_reasoning", "separate_reasoning", "stream_reasoning"}) {
    if (fields.Bool(name).value_or(true)) continue;
    fields.Fail(name, absl::StrCat(name, " is false; only true is supported"));
  }
  if (const Json* format = fields.Object("response_format"); format != nullptr) {
    const Json type = format->value("type", Json());
    if (type != "text") {
      fields.Fail("response_format", absl::StrCat("response_format.type is ", Describe(type),
                                                  "; only \"text\" is supported"));
    }
  }
  if (const Json* modalities = fields.Array("modalities"); modalities != nullptr) {
    if (*modalities != Json::array({"text"})) {
      fields.Fail("modalities", "modalities may only be [\"text\"]");
    }
  }
  // Tools without a tool_choice mean "auto": the model might call one, and nobody would parse the
  // call. "auto" without tools can call nothing, and passes.
  const Json* tools = fields.Array("tools");
  const Json* choice = fields.Find("tool_choice");
  if (choice != nullptr && *choice != "none" && *choice != "auto") {
    fields.Fail("tool_choice",
                absl::StrCat("tool_choice is ", Describe(*choice), "; only \"none\" is supported"));
  }
  if (tools != nullptr && !tools->empty() && (choice == nullptr || *choice != "none")) {
    fields.Fail("tools",
                "tools are given, but this server does not support tool calls; leave them out or "
                "set tool_choice to \"none\"");
  }
  return fields.status();
}

// What chat and completions have in common, but for their kinds of logprobs.
GenerateSpec ReadCommon(FieldReader& fields, OpenAiRequest* request) {
  GenerateSpec spec;
  spec.model = fields.String("model").value_or("");
  spec.sampling = ReadSampling(fields);
  spec.max_tokens = fields.Integer("max_tokens");
  // OpenAI's newer name wins. Errors name the field that the client has sent.
  if (const auto newer = fields.Integer("max_completion_tokens")) {
    spec.max_tokens = newer;
    spec.max_tokens_field = "max_completion_tokens";
  }
  spec.min_tokens = fields.Integer("min_tokens");
  // A raw completion has all that follows its prompt, markers too (docs/api.md).
  spec.answer.split_reasoning = request->chat;
  request->skip_special = fields.Bool("skip_special_tokens").value_or(true);
  spec.answer.skip_special = request->skip_special;
  spec.answer.stop = fields.Strings("stop");
  spec.stop_token_ids = fields.Ids("stop_token_ids");
  spec.ignore_eos = fields.Bool("ignore_eos").value_or(false);
  spec.choices = fields.Integer("n");
  spec.priority = fields.Integer("priority");
  request->stream = fields.Bool("stream").value_or(false);
  request->return_token_ids = fields.Bool("return_token_ids").value_or(false);
  if (const Json* options = fields.Object("stream_options"); options != nullptr) {
    FieldReader option_fields(*options, "stream_options.");
    request->include_usage = option_fields.Bool("include_usage").value_or(false);
    request->include_event_ids = option_fields.Bool("include_event_ids").value_or(false);
    if (!option_fields.status().ok()) {
      fields.Fail("stream_options", std::string(option_fields.status().message()));
    }
    // OpenAI refuses it as well: the client most likely forgot `stream`.
    if (!request->stream) {
      fields.Fail("stream_options", "stream_options are given, but stream is not true");
    }
  }
  return spec;
}

void ReadChatLogprobs(FieldReader& fields, GenerateSpec* spec) {
  const bool wanted = fields.Bool("logprobs").value_or(false);
  const std::optional<int64_t> top = fields.Integer("top_logprobs");
  spec->logprobs_field = "top_logprobs";
  // 0 gives the log-probability of each token itself, without alternatives.
  if (wanted) spec->logprobs = top.value_or(0);
  if (!wanted && top.value_or(0) != 0) {
    fields.Fail("top_logprobs",
                absl::StrCat("top_logprobs is ", *top, ", but logprobs is not true"));
  }
}

absl::Status BuildRequests(const FrontendContext& context, GenerateSpec spec,
                           std::vector<std::vector<int32_t>> prompts, OpenAiRequest* request) {
  request->model = spec.model.empty() ? ModelName(context) : spec.model;
  request->id = absl::StrCat(request->chat ? "chatcmpl-" : "cmpl-", DrawId(context.random));
  for (size_t i = 0; i < prompts.size(); ++i) {
    // Each prompt is a request of its own in the core, where no two may have one id.
    spec.id = prompts.size() == 1 ? request->id : absl::StrCat(request->id, "-", i);
    ASSIGN_OR_RETURN(Request built, BuildRequest(context, spec, std::move(prompts[i])));
    request->requests.push_back(std::move(built));
  }
  // There is at least one: ReadPrompts takes an empty array for one prompt without tokens, which
  // BuildRequest refuses.
  request->logprobs = request->requests.front().logprobs;
  const size_t choices = request->requests.size() * request->requests.front().choices;
  if (static_cast<int64_t>(choices) > context.limits.choices_max) {
    return FieldError("n", absl::StrCat("the prompts times n make ", choices, " choices, at most ",
                                        context.limits.choices_max));
  }
  return absl::OkStatus();
}

// A string, an array of strings, an array of token ids, or an array of such arrays.
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadPrompts(const FrontendContext& context,
                                                              const Json& prompt,
                                                              bool add_special) {
  std::vector<std::vector<int32_t>> prompts;
  const auto add = [&](const Json& one) -> absl::Status {
    if (one.is_string()) {
      ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                       PromptFromText(context, one.get_ref<const std::string&>(), add_special));
      prompts.push_back(std::move(ids));
      return absl::OkStatus();
    }
    std::optional<std::vector<int32_t>> ids;
    if (one.is_array()) ids = ReadIds(one);
    if (!ids) {
      return FieldError(
          "prompt", absl::StrCat("prompt must be a string, an array of strings, an ",
                                 "array of token ids or an array of those, not ", Describe(one)));
    }
    RETURN_IF_ERROR(CheckIds(context, "prompt", *ids));
    prompts.push_back(*std::move(ids));
    return absl::OkStatus();
  };
  // An array that begins with a number is one prompt, in token ids.
  const bool many = prompt.is_array() && !prompt.empty() && !prompt.front().is_number();
  if (!many) {
    RETURN_IF_ERROR(add(prompt));
    return prompts;
  }
  // The check comes before any prompt is tokenized: the count limits what one body can cost.
  if (static_cast<int64_t>(prompt.size()) > context.limits.choices_max) {
    return FieldError("prompt", absl::StrCat("prompt has ", prompt.size(), " prompts, at most ",
                                             context.limits.choices_max));
  }
  for (const Json& one : prompt) RETURN_IF_ERROR(add(one));
  return prompts;
}

}  // namespace

absl::StatusOr<text::ChatInput> ReadChatInput(const FrontendContext& context, const Json& body) {
  FieldReader fields(body);
  text::ChatInput input;
  input.now = context.clock.Now();
  input.add_generation_prompt = fields.Bool("add_generation_prompt").value_or(true);
  if (const Json* kwargs = fields.Object("chat_template_kwargs")) input.template_kwargs = *kwargs;
  if (const auto effort = fields.String("reasoning_effort")) {
    // A value among the template's own arguments was meant for this very template.
    if (!input.template_kwargs.contains("reasoning_effort")) {
      input.template_kwargs["reasoning_effort"] = *effort;
    }
  }
  const Json* messages = fields.Array("messages");
  RETURN_IF_ERROR(fields.status());
  if (messages == nullptr) return FieldError("messages", "messages is missing");
  ASSIGN_OR_RETURN(input.messages, ReadMessages(*messages, context.limits.message_count_max));
  return input;
}

absl::StatusOr<OpenAiRequest> ReadChatRequest(const FrontendContext& context, const Json& body) {
  OpenAiRequest request{.chat = true};
  FieldReader fields(body);
  GenerateSpec spec = ReadCommon(fields, &request);
  spec.prompt_field = "messages";
  ReadChatLogprobs(fields, &spec);
  if (fields.Bool("echo").value_or(false)) fields.Fail("echo", "echo is not supported for chats");
  RETURN_IF_ERROR(fields.status());
  // All cheap checks come before the template, which may take long on a large chat.
  RETURN_IF_ERROR(CheckSupported(body, fields));
  RETURN_IF_ERROR(CheckModel(context, spec.model));
  ASSIGN_OR_RETURN(text::ChatInput input, ReadChatInput(context, body));
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt, PromptFromChat(context, input));
  RETURN_IF_ERROR(BuildRequests(context, std::move(spec), {std::move(prompt)}, &request));
  return request;
}

absl::StatusOr<OpenAiRequest> ReadCompletionRequest(const FrontendContext& context,
                                                    const Json& body) {
  OpenAiRequest request{.chat = false};
  FieldReader fields(body);
  GenerateSpec spec = ReadCommon(fields, &request);
  spec.max_tokens_default = context.limits.completion_tokens_default;
  // Some clients send chat's `false` here; it asks for nothing.
  const Json* logprobs = fields.Find("logprobs");
  if (logprobs == nullptr || *logprobs != false) spec.logprobs = fields.Integer("logprobs");
  request.echo = fields.Bool("echo").value_or(false);
  spec.prompt_logprobs = request.echo && spec.logprobs.has_value();
  const bool add_special = fields.Bool("add_special_tokens").value_or(true);
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(CheckSupported(body, fields));
  RETURN_IF_ERROR(CheckModel(context, spec.model));
  const Json* prompt = fields.Find("prompt");
  if (prompt == nullptr) return FieldError("prompt", "prompt is missing");
  ASSIGN_OR_RETURN(std::vector<std::vector<int32_t>> prompts,
                   ReadPrompts(context, *prompt, add_special));
  RETURN_IF_ERROR(BuildRequests(context, std::move(spec), std::move(prompts), &request));
  return request;
}

}  // namespace epic::coordinator
