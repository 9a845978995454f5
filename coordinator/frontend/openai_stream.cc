#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "coordinator/frontend/errors.h"
#include "coordinator/frontend/openai_answer.h"

namespace epic::coordinator {

StreamedAnswer::StreamedAnswer(const FrontendContext& context, const OpenAiRequest& request,
                               const Generation& generation)
    : context_(context), request_(request), generation_(generation), identity_(context, request) {
  Json chunk = identity_.Envelope(request.chat ? "chat.completion.chunk" : "text_completion");
  // In OpenAI's shape a client that asks for the usage finds the field in each chunk, null in all
  // but the last.
  if (request.include_usage) chunk["usage"] = nullptr;
  // The envelope is printed once and cut at its empty list; an event then prints a choice alone.
  const std::string bytes = Dump(chunk);
  // No string holds this: a quote within one is escaped.
  const size_t found = bytes.find(R"("choices":[])");
  CHECK(found != bytes.npos) << bytes;
  const size_t choices = found + sizeof(R"("choices":[)") - 1;
  before_choice_ = bytes.substr(0, choices);
  after_choice_ = bytes.substr(choices);
  for (int i = 0; i < generation.choice_count(); ++i) {
    logprobs_.emplace_back(*context.tokenizer, request.logprobs, request.skip_special);
  }
}

std::string StreamedAnswer::Begin() {
  std::string events;
  for (int i = 0; i < generation_.choice_count(); ++i) {
    if (request_.chat) {
      const Json delta = {{"role", "assistant"}, {"content", ""}};
      events += Event(Dump(
          {{"index", i}, {"delta", delta}, {"logprobs", nullptr}, {"finish_reason", nullptr}}));
    }
  }
  return events;
}

std::string StreamedAnswer::Events(const Generation::Output& output) {
  if (output.token) ++token_count_;
  return request_.chat ? ChatEvents(output) : CompletionEvents(output);
}

// Written as text: every token of every stream passes here, and a tree of values costs as much as
// all else that is done for it.
std::string StreamedAnswer::ChatEvents(const Generation::Output& output) {
  std::string extras = TokenIds(output);  // what goes with the first event of this output
  std::string logprobs = "null";
  if (output.token && request_.logprobs >= 0) {
    logprobs =
        Dump({{"content",
               Json::array({ChatLogprob(*context_.tokenizer, *output.token, request_.logprobs)})},
              {"refusal", nullptr}});
  }
  std::string events;
  const auto add = [&](const std::string& delta, FinishReason finish) {
    events += Event(absl::StrCat(R"({"index":)", output.index, R"(,"delta":)", delta,
                                 R"(,"logprobs":)", logprobs, R"(,"finish_reason":)",
                                 Dump(FinishReasonJson(finish)), extras, "}"));
    // Reasoning and content of one token are two events. Ids and log-probabilities go with the
    // first one alone, so that clients do not count the token twice.
    extras.clear();
    logprobs = "null";
  };
  if (!output.reasoning.empty()) {
    const std::string text = Dump(output.reasoning);
    add(absl::StrCat(R"({"reasoning_content":)", text, R"(,"reasoning":)", text, "}"),
        v1::FINISH_REASON_NONE);
  }
  if (!output.content.empty()) {
    add(absl::StrCat(R"({"content":)", Dump(output.content), "}"), v1::FINISH_REASON_NONE);
  }
  // A token without text still has its ids and log-probabilities to tell.
  if (output.finish != v1::FINISH_REASON_NONE || !extras.empty() || logprobs != "null") {
    add("{}", output.finish);
  }
  return events;
}

std::string StreamedAnswer::CompletionEvents(const Generation::Output& output) {
  std::string events;
  // Not before the first token: the prompt's log-probabilities are known from then on.
  if (request_.echo && output.position <= 1 && output.token) {
    events += Event(Dump(Echo(output.index)));
  }
  const std::string ids = TokenIds(output);
  const bool has_logprobs = output.token && request_.logprobs >= 0;
  if (output.content.empty() && output.finish == v1::FINISH_REASON_NONE && !has_logprobs &&
      ids.empty()) {
    return events;
  }
  std::string logprobs = "null";
  if (has_logprobs) logprobs = Dump(logprobs_[output.index].Next({&*output.token, 1}));
  return events +
         Event(absl::StrCat(R"({"index":)", output.index, R"(,"text":)", Dump(output.content),
                            R"(,"logprobs":)", logprobs, R"(,"finish_reason":)",
                            Dump(FinishReasonJson(output.finish)), ids, "}"));
}

// The fields of a choice for return_token_ids, with a comma before each.
std::string StreamedAnswer::TokenIds(const Generation::Output& output) const {
  if (!output.token || !request_.return_token_ids) return "";
  std::string fields = absl::StrCat(R"(,"token_ids":[)", output.token->token, "]");
  if (output.position == 1) {
    const auto& prompt = generation_.prompt(generation_.prompt_of(output.index));
    absl::StrAppend(&fields, R"(,"prompt_token_ids":[)", absl::StrJoin(prompt, ","), "]");
  }
  return fields;
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
  // Clients wait for [DONE], also behind an error.
  return absl::StrCat("data: ", ErrorBody(status), "\n\ndata: [DONE]\n\n");
}

// Many clients parse every line but `data:` as JSON, so no other field is sent unasked.
std::string StreamedAnswer::Event(const std::string& choice) const {
  std::string event;
  if (request_.include_event_ids) {
    absl::StrAppend(&event, "id: ", identity_.id, ":", token_count_, "\n");
  }
  absl::StrAppend(&event, "data: ", before_choice_, choice, after_choice_, "\n\n");
  return event;
}

}  // namespace epic::coordinator
