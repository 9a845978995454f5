// OpenAI's (and vLLM's) request bodies, read and checked down to coordinator::Requests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/frontend/context.h"
#include "coordinator/frontend/json_fields.h"
#include "coordinator/request.h"
#include "text/chat_template.h"

namespace epic::coordinator {

struct OpenAiRequest {
  bool chat = true;
  std::string id;                 // "chatcmpl-…" or "cmpl-…"
  std::string model;              // as answers name it
  std::vector<Request> requests;  // one for each prompt; their ids start with `id`
  bool stream = false;
  bool include_usage = false;      // a last chunk with the usage
  bool include_event_ids = false;  // each event counts the tokens up to its end
  bool echo = false;               // completions: the prompt comes first
  bool return_token_ids = false;
  bool skip_special = true;  // as AnswerFormat::skip_special
  int logprobs = -1;         // as Request::logprobs
};

// Unsupported fields that would change the answer are errors that name them; fields that nobody
// knows are ignored, as OpenAI does.
absl::StatusOr<OpenAiRequest> ReadChatRequest(const FrontendContext& context, const Json& body);
absl::StatusOr<OpenAiRequest> ReadCompletionRequest(const FrontendContext& context,
                                                    const Json& body);

// The messages and the template arguments of a chat request. Tools are never handed on, because
// calls are not supported.
absl::StatusOr<text::ChatInput> ReadChatInput(const FrontendContext& context, const Json& body);

}  // namespace epic::coordinator
