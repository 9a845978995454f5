// From what a client asked for, in whatever protocol, to a checked coordinator::Request. The ranges
// of all fields live here, so HTTP and gRPC cannot differ.
//
//   RETURN_IF_ERROR(CheckModel(context, spec.model));
//   ASSIGN_OR_RETURN(std::vector<int32_t> prompt, PromptFromText(context, text, true));
//   ASSIGN_OR_RETURN(Request request, BuildRequest(context, spec, std::move(prompt)));
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/frontend/context.h"
#include "coordinator/request.h"

namespace epic::coordinator {

// The fields as the client gave them: unchecked, and unset where it said nothing.
struct GenerateSpec {
  std::string model;                    // empty: the served one
  std::string id;                       // empty: drawn
  std::string prompt_field = "prompt";  // as the client calls it
  v1::Sampling sampling;
  std::optional<int64_t> max_tokens;
  std::string max_tokens_field = "max_tokens";  // as the client calls it
  std::optional<int64_t> max_tokens_default;    // unset: what the context leaves
  std::optional<int64_t> min_tokens;
  text::AnswerFormat answer;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::optional<int64_t> choices;
  std::optional<int64_t> logprobs;  // unset: none
  std::string logprobs_field = "logprobs";
  bool prompt_logprobs = false;
  std::optional<int64_t> priority;
  std::optional<double> timeout_seconds;  // unset or 0: the default
};

// NotFound with the served names, unless `model` is one of them or empty.
absl::Status CheckModel(const FrontendContext& context, const std::string& model);
// The canonical served name.
std::string ModelName(const FrontendContext& context);

absl::StatusOr<std::vector<int32_t>> PromptFromText(const FrontendContext& context,
                                                    const std::string& text, bool add_special);
absl::StatusOr<std::vector<int32_t>> PromptFromChat(const FrontendContext& context,
                                                    const text::ChatInput& input);

// InvalidArgument, naming field, value and limit, for what is out of range or does not fit the
// context; Unavailable while no worker has told the context's size.
absl::StatusOr<Request> BuildRequest(const FrontendContext& context, const GenerateSpec& spec,
                                     std::vector<int32_t> prompt);
// Every id names a token.
absl::Status CheckIds(const FrontendContext& context, const std::string& field,
                      const std::vector<int32_t>& ids);

// 32 hexadecimal digits.
std::string DrawId(Random& random);

}  // namespace epic::coordinator
