#include "absl/strings/str_cat.h"
#include "coordinator/frontend/errors.h"
#include "coordinator/frontend/openai_answer.h"

namespace epic::coordinator {

StreamedAnswer::StreamedAnswer(const FrontendContext& context, const OpenAiRequest& request,
                               const Generation& generation)
    : context_(context), request_(request), generation_(generation), identity_(context, request) {
  Json chunk = identity_.Envelope(request.chat ? "chat.completion.chunk" : "text_completion");
  if (request.include_usage) chunk["usage"] = nullptr;
  const std::string bytes = Dump(chunk);
  // No string holds this: a quote within one is escaped.
  const size_t choices = bytes.find(R"("choices":[])") + sizeof(R"("choices":[)") - 1;
  before_choice_ = bytes.substr(0, choices);
  after_choice_ = bytes.substr(choices);
  for (int i = 0; i < generation.choice_count(); ++i) {
    logprobs_.emplace_back(*context.tokenizer, request.logprobs);
  }
}

std::string StreamedAnswer::Begin() {
  std::string events;
  for (int i = 0; i < generation_.choice_count(); ++i) {
    if (request_.chat) {
      const Json delta = {{"role", "assistant"}, {"content", ""}};
      events += Event(
          {{"index", i}, {"delta", delta}, {"logprobs", nullptr}, {"finish_reason", nullptr}});
    }
  }
  return events;
}

std::string StreamedAnswer::Events(const Generation::Output& output) {
  if (output.token) ++token_count_;
  return request_.chat ? ChatEvents(output) : CompletionEvents(output);
}

std::string StreamedAnswer::ChatEvents(const Generation::Output& output) {
  Json extras = Json::object();  // what goes with the first event of this output
  if (output.token && request_.return_token_ids) {
    extras["token_ids"] = Json::array({output.token->token});
    if (output.position == 1) extras["prompt_token_ids"] = generation_.prompt(0);
  }
  Json logprobs;
  if (output.token && request_.logprobs >= 0) {
    logprobs = {{"content",
                 Json::array({ChatLogprob(*context_.tokenizer, *output.token, request_.logprobs)})},
                {"refusal", nullptr}};
  }
  std::string events;
  const auto add = [&](Json delta, FinishReason finish) {
    Json choice = {{"index", output.index},
                   {"delta", std::move(delta)},
                   {"logprobs", std::move(logprobs)},
                   {"finish_reason", FinishReasonJson(finish)}};
    choice.update(extras);
    extras.clear();
    logprobs = nullptr;
    events += Event(choice);
  };
  if (!output.reasoning.empty()) {
    add({{"reasoning_content", output.reasoning}, {"reasoning", output.reasoning}},
        FinishReason::kNone);
  }
  if (!output.text.empty()) add({{"content", output.text}}, FinishReason::kNone);
  if (output.finish != FinishReason::kNone || !extras.empty() || !logprobs.is_null()) {
    add(Json::object(), output.finish);
  }
  return events;
}

std::string StreamedAnswer::CompletionEvents(const Generation::Output& output) {
  std::string events;
  if (request_.echo && output.position <= 1 && output.token) {
    events += Event(Echo(output.index));
  }
  const bool wanted = output.token && (request_.logprobs >= 0 || request_.return_token_ids);
  if (output.text.empty() && output.finish == FinishReason::kNone && !wanted) return events;
  Json choice = {{"index", output.index}, {"text", output.text}, {"logprobs", nullptr}};
  if (output.token && request_.logprobs >= 0) {
    choice["logprobs"] = logprobs_[output.index].Next({&*output.token, 1});
  }
  choice["finish_reason"] = FinishReasonJson(output.finish);
  if (output.token && request_.return_token_ids) {
    choice["token_ids"] = Json::array({output.token->token});
    if (output.position == 1) {
      choice["prompt_token_ids"] = generation_.prompt(generation_.prompt_of(output.index));
    }
  }
  return events + Event(choice);
}

Json StreamedAnswer::Echo(int index) {
  const int prompt = generation_.prompt_of(index);
  const std::vector<int32_t>& ids = generation_.prompt(prompt);
  Json choice = {{"index", index},
                 {"text", context_.tokenizer->Decode(ids, /*skip_special=*/true)},
                 {"logprobs", nullptr},
                 {"finish_reason", nullptr}};
  if (request_.logprobs >= 0) {
    choice["logprobs"] = logprobs_[index].Prompt(ids, generation_.prompt_logprobs(prompt));
  }
  return choice;
}

std::string StreamedAnswer::End() {
  std::string events;
  if (request_.include_usage) {
    Json chunk = identity_.Envelope(request_.chat ? "chat.completion.chunk" : "text_completion");
    chunk["usage"] = UsageJson(generation_.usage());
    absl::StrAppend(&events, "data: ", Dump(chunk), "\n\n");
  }
  return events + "data: [DONE]\n\n";
}

std::string StreamedAnswer::Error(const absl::Status& status) {
  return absl::StrCat("data: ", ErrorBody(status), "\n\ndata: [DONE]\n\n");
}

std::string StreamedAnswer::Event(const Json& choice) const {
  return absl::StrCat("id: ", identity_.id, ":", token_count_, "\ndata: ", before_choice_,
                      Dump(choice), after_choice_, "\n\n");
}

}  // namespace epic::coordinator
