#include "coordinator/frontend/grpc_requests.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/frontend/chat_messages.h"
#include "coordinator/frontend/errors.h"
#include "coordinator/frontend/request_builder.h"

namespace epic::coordinator {
namespace {

GenerateSpec ReadSpec(const v1::GenerateRequest& message) {
  GenerateSpec spec;
  spec.sampling = message.sampling();
  if (message.has_max_tokens()) spec.max_tokens = message.max_tokens();
  if (message.has_logprobs()) spec.logprobs = message.logprobs();
  if (message.has_n()) spec.choices = message.n();
  spec.model = message.model();
  spec.id = message.request_id();
  // Fields without presence follow: their 0 and "" mean the default, which is what 0 and "" mean in
  // GenerateSpec.
  spec.min_tokens = message.min_tokens();
  spec.answer.stop.assign(message.stop().begin(), message.stop().end());
  spec.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  spec.ignore_eos = message.ignore_eos();
  spec.timeout_seconds = message.timeout_seconds();
  spec.priority = message.priority();
  return spec;
}

absl::StatusOr<std::vector<int32_t>> ReadChat(const FrontendContext& context,
                                              const v1::Messages& message) {
  // The messages go the way of HTTP's, through JSON and ReadMessages, so the same chat gives the
  // same prompt and the same errors over both.
  Json messages = Json::array();
  for (const v1::ChatMessage& given : message.messages()) {
    Json one = {{"role", given.role()}, {"content", given.content()}};
    if (!given.reasoning_content().empty()) one["reasoning_content"] = given.reasoning_content();
    if (!given.name().empty()) one["name"] = given.name();
    messages.push_back(std::move(one));
  }
  text::ChatInput input;
  input.now = context.clock.Now();
  ASSIGN_OR_RETURN(input.messages, ReadMessages(messages, context.limits.message_count_max));
  if (!message.chat_template_kwargs_json().empty()) {
    // The parser's message says "the body", so the name of the field goes before it.
    absl::StatusOr<Json> kwargs = ParseObject(message.chat_template_kwargs_json());
    if (!kwargs.ok()) {
      return FieldError("chat_template_kwargs_json",
                        absl::StrCat("chat_template_kwargs_json: ", kwargs.status().message()));
    }
    input.template_kwargs = *std::move(kwargs);
  }
  return PromptFromChat(context, input);
}

void AddLogprob(const JournalToken& token, v1::TokenLogprob* message) {
  message->set_token_id(token.token);
  message->set_logprob(token.logprob);
  message->mutable_top()->Assign(token.top.begin(), token.top.end());
}

const char* FinishReasonText(FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_NONE:
      return "";
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    // This is what HTTP calls "abort". A choice that failed never comes here: Generation::Pull
    // returns its error, which ends the call.
    default:
      return "cancelled";
  }
}

void FillUsage(const UsageCounts& usage, v1::Usage* message) {
  message->set_prompt_tokens(usage.prompt_tokens);
  message->set_completion_tokens(usage.completion_tokens);
  message->set_cached_tokens(usage.cached_tokens);
  message->set_reasoning_tokens(usage.reasoning_tokens);
}

}  // namespace

absl::StatusOr<Request> ReadGenerate(const FrontendContext& context,
                                     const v1::GenerateRequest& message) {
  GenerateSpec spec = ReadSpec(message);
  // The cheap check comes first: templates and tokenizers cost by the length of the prompt.
  RETURN_IF_ERROR(CheckModel(context, spec.model));
  std::vector<int32_t> prompt;
  switch (message.input_case()) {
    case v1::GenerateRequest::kText: {
      ASSIGN_OR_RETURN(prompt, PromptFromText(context, message.text(), /*add_special=*/true));
      // As in /v1/completions, a client that writes the whole prompt reads all that follows it.
      spec.answer.split_reasoning = false;
      break;
    }
    case v1::GenerateRequest::kMessages: {
      spec.prompt_field = "messages";
      ASSIGN_OR_RETURN(prompt, ReadChat(context, message.messages()));
      break;
    }
    // Token ids may be a rendered chat. Reasoning is split off, and the parser finds out by the
    // prompt's last marker whether it is open (text/answer_parser.h).
    case v1::GenerateRequest::kTokenIds:
      spec.prompt_field = "token_ids";
      prompt.assign(message.token_ids().ids().begin(), message.token_ids().ids().end());
      RETURN_IF_ERROR(CheckIds(context, "token_ids", prompt));
      break;
    default:
      return FieldError("input", "one of text, messages or token_ids is needed");
  }
  return BuildRequest(context, spec, std::move(prompt));
}

absl::StatusOr<v1::TokenizeResponse> Tokenize(const FrontendContext& context,
                                              const v1::TokenizeRequest& message) {
  RETURN_IF_ERROR(CheckModel(context, message.model()));
  absl::StatusOr<std::vector<int32_t>> ids =
      message.has_messages()
          ? ReadChat(context, message.messages())
          : PromptFromText(context, message.text(), message.add_special_tokens());
  if (!ids.ok()) return ids.status();
  v1::TokenizeResponse response;
  response.mutable_ids()->Assign(ids->begin(), ids->end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Detokenize(const FrontendContext& context,
                                                  const v1::DetokenizeRequest& message) {
  RETURN_IF_ERROR(CheckModel(context, message.model()));
  const std::vector<int32_t> ids(message.ids().begin(), message.ids().end());
  RETURN_IF_ERROR(CheckIds(context, "ids", ids));
  v1::DetokenizeResponse response;
  response.set_text(context.tokenizer->Decode(ids, message.skip_special_tokens()));
  return response;
}

v1::ListModelsResponse ListModels(const FrontendContext& context) {
  const ModelInfo model = context.inference.model();
  v1::ListModelsResponse response;
  for (const std::string& name : model.names) {
    v1::ModelCard* card = response.add_models();
    card->set_id(name);
    card->set_max_model_len(model.max_model_len);
    card->set_system_fingerprint(model.system_fingerprint);
  }
  return response;
}

std::vector<v1::GenerateResponse> ToResponses(const GrpcIdentity& identity,
                                              const Generation& generation,
                                              const std::vector<Generation::Output>& outputs) {
  std::vector<v1::GenerateResponse> responses;
  for (const Generation::Output& output : outputs) {
    // One choice's tokens of a pull share a response, because gRPC writes responses one at a time.
    if (responses.empty() || responses.back().choice() != output.index) {
      v1::GenerateResponse& fresh = responses.emplace_back();
      fresh.set_request_id(identity.request_id);
      fresh.set_choice(output.index);
      fresh.set_system_fingerprint(identity.system_fingerprint);
      fresh.set_weights_id(NumberOf(identity.weights));
    }
    v1::GenerateResponse& response = responses.back();
    response.mutable_reasoning()->append(output.reasoning);
    response.mutable_text()->append(output.content);
    response.set_finish_reason(FinishReasonText(output.finish));
    if (!output.token) continue;
    response.add_token_ids(output.token->token);
    if (generation.logprobs() >= 0) AddLogprob(*output.token, response.add_logprobs());
  }
  // The counts are final only now. The last pull of a generation is never empty: it brings an end.
  if (generation.done() && !responses.empty()) {
    FillUsage(generation.usage(), responses.back().mutable_usage());
  }
  return responses;
}

}  // namespace epic::coordinator
