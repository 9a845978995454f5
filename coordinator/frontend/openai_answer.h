// Answers in OpenAI's shapes: whole, or as server-sent events.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/frontend/generation.h"
#include "coordinator/frontend/openai_logprobs.h"
#include "coordinator/frontend/openai_request.h"

namespace epic::coordinator {

// What all parts of an answer say of themselves.
struct AnswerIdentity {
  AnswerIdentity(const FrontendContext& context, const OpenAiRequest& request);
  // {"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…,"choices":[]}
  Json Envelope(const char* object) const;

  std::string id, model, system_fingerprint;
  int64_t created = 0;  // Unix seconds
};

Json UsageJson(const UsageCounts& usage);
std::string Dump(const Json& value);
// stop, length, abort; null while running.
Json FinishReasonJson(FinishReason reason);

// The body of an answer that does not stream. Takes all outputs, then gives the body.
class WholeAnswer {
 public:
  // All outlive this.
  WholeAnswer(const FrontendContext& context, const OpenAiRequest& request,
              const Generation& generation);
  void Add(Generation::Output output);
  std::string Body() const;

 private:
  struct Choice {
    std::string reasoning, text;
    std::vector<JournalToken> tokens;  // kept if somebody asks for them
    FinishReason finish = v1::FINISH_REASON_NONE;
  };
  Json ChatChoice(int index) const;
  Json CompletionChoice(int index) const;
  Json TokenIds(const Choice& choice) const;

  const FrontendContext& context_;
  const OpenAiRequest& request_;
  const Generation& generation_;
  AnswerIdentity identity_;
  std::vector<Choice> choices_;
};

// The events of an answer that streams. Each output gives the same events whenever it is read.
// Where the client asked for event ids, `id: <request>:<tokens>` counts the tokens up to the end of
// the event. Reasoning and content are never in one delta.
class StreamedAnswer {
 public:
  // All outlive this.
  StreamedAnswer(const FrontendContext& context, const OpenAiRequest& request,
                 const Generation& generation);
  // Before the first output: the roles of a chat's choices.
  std::string Begin();
  std::string Events(const Generation::Output& output);
  // Ends the stream: gives the usage, if it was asked for, and [DONE].
  std::string End();
  // Ends the stream early: gives the error and [DONE].
  std::string Error(const absl::Status& status);

 private:
  std::string ChatEvents(const Generation::Output& output);
  std::string CompletionEvents(const Generation::Output& output);
  Json Echo(int index);
  std::string TokenIds(const Generation::Output& output) const;
  // `choice`: its JSON.
  std::string Event(const std::string& choice) const;

  const FrontendContext& context_;
  const OpenAiRequest& request_;
  const Generation& generation_;
  AnswerIdentity identity_;
  std::string before_choice_, after_choice_;  // the rest of a chunk, which is always the same
  std::vector<CompletionLogprobs> logprobs_;  // of each choice
  int token_count_ = 0;
};

}  // namespace epic::coordinator
