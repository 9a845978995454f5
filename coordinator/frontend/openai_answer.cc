#include "coordinator/frontend/openai_answer.h"

#include "absl/strings/str_cat.h"

namespace epic::coordinator {

// The identity is read once for each answer, so that all its parts say the same.
AnswerIdentity::AnswerIdentity(const FrontendContext& context, const OpenAiRequest& request)
    : id(request.id),
      model(request.model),
      system_fingerprint(context.inference.model().system_fingerprint),
      created(absl::ToUnixSeconds(context.clock.Now())) {}

Json AnswerIdentity::Envelope(const char* object) const {
  // Null until a worker has said what it computes with.
  Json fingerprint;
  if (!system_fingerprint.empty()) fingerprint = system_fingerprint;
  return {{"id", id},
          {"object", object},
          {"created", created},
          {"model", model},
          {"system_fingerprint", fingerprint},
          {"choices", Json::array()}};
}

Json UsageJson(const UsageCounts& usage) {
  // Reasoning tokens are a part of the completion's, and cached ones a part of the prompt's.
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}};
}

std::string Dump(const Json& value) {
  // A client's own string may hold bytes that are not UTF-8; an answer must not.
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json FinishReasonJson(FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_NONE:
      return nullptr;
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    // The word is vLLM's; OpenAI has none for a request that was cancelled.
    default:
      return "abort";
  }
}

WholeAnswer::WholeAnswer(const FrontendContext& context, const OpenAiRequest& request,
                         const Generation& generation)
    : context_(context),
      request_(request),
      generation_(generation),
      identity_(context, request),
      choices_(generation.choice_count()) {}

void WholeAnswer::Add(Generation::Output output) {
  Choice& choice = choices_[output.index];
  choice.reasoning += output.reasoning;
  choice.text += output.content;
  choice.finish = output.finish;
  // The tokens of long answers are large, so they are kept only for those who asked.
  const bool keep = request_.logprobs >= 0 || request_.return_token_ids;
  if (keep && output.token) choice.tokens.push_back(*std::move(output.token));
}

std::string WholeAnswer::Body() const {
  Json body = identity_.Envelope(request_.chat ? "chat.completion" : "text_completion");
  for (int i = 0; i < generation_.choice_count(); ++i) {
    body["choices"].push_back(request_.chat ? ChatChoice(i) : CompletionChoice(i));
  }
  body["usage"] = UsageJson(generation_.usage());
  // A chat has one prompt. The choices of a completion may have different ones, so each names its
  // own.
  if (request_.chat && request_.return_token_ids) {
    body["prompt_token_ids"] = generation_.prompt(0);
  }
  return Dump(body);
}

Json WholeAnswer::ChatChoice(int index) const {
  const Choice& choice = choices_[index];
  Json message = {{"role", "assistant"}, {"content", choice.text}};
  const Json reasoning = choice.reasoning.empty() ? Json() : Json(choice.reasoning);
  // DeepSeek's name and the newer one of vLLM; clients read one or the other.
  message["reasoning_content"] = reasoning;
  message["reasoning"] = reasoning;
  Json logprobs;
  if (request_.logprobs >= 0) {
    logprobs = {{"content", Json::array()}, {"refusal", nullptr}};
    for (const JournalToken& token : choice.tokens) {
      logprobs["content"].push_back(ChatLogprob(*context_.tokenizer, token, request_.logprobs));
    }
  }
  Json json = {{"index", index},
               {"message", std::move(message)},
               {"logprobs", std::move(logprobs)},
               {"finish_reason", FinishReasonJson(choice.finish)}};
  if (request_.return_token_ids) json["token_ids"] = TokenIds(choice);
  return json;
}

Json WholeAnswer::CompletionChoice(int index) const {
  const Choice& choice = choices_[index];
  const int prompt = generation_.prompt_of(index);
  const std::vector<int32_t>& prompt_ids = generation_.prompt(prompt);
  Json logprobs;
  if (request_.logprobs >= 0) {
    CompletionLogprobs format(*context_.tokenizer, request_.logprobs, request_.skip_special);
    // The prompt comes first, also for `format`: text offsets count through both parts.
    if (request_.echo) logprobs = format.Prompt(prompt_ids, generation_.prompt_logprobs(prompt));
    Json generated = format.Next(choice.tokens);
    if (logprobs.is_null()) {
      logprobs = std::move(generated);
    } else {
      for (auto& [name, list] : generated.items()) {
        for (Json& element : list) logprobs[name].push_back(std::move(element));
      }
    }
  }
  std::string text;
  // Special tokens are left out, as CompletionLogprobs::Prompt counts its offsets.
  if (request_.echo) text = context_.tokenizer->Decode(prompt_ids, /*skip_special=*/true);
  text += choice.text;
  Json json = {{"index", index},
               {"text", std::move(text)},
               {"logprobs", std::move(logprobs)},
               {"finish_reason", FinishReasonJson(choice.finish)}};
  if (request_.return_token_ids) {
    json["token_ids"] = TokenIds(choice);
    json["prompt_token_ids"] = prompt_ids;
  }
  return json;
}

Json WholeAnswer::TokenIds(const Choice& choice) const {
  Json ids = Json::array();
  for (const JournalToken& token : choice.tokens) ids.push_back(token.token);
  return ids;
}

}  // namespace epic::coordinator
