#include "coordinator/frontend/request_builder.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "coordinator/frontend/errors.h"
#include "coordinator/frontend/ranges.h"
#include "coordinator/frontend/sampling.h"

namespace epic::coordinator {
namespace {

// The limit is chosen, and equals that of X-Request-Id.
constexpr size_t kIdBytesMax = 128;

absl::Status FillLengths(const FrontendContext& context, const GenerateSpec& spec,
                         Request* request) {
  const int64_t context_size = context.inference.model().max_model_len;
  // A rank tells the size when it is ready.
  if (context_size == 0) return absl::UnavailableError("the model is still loading");
  const auto prompt_size = static_cast<int64_t>(request->prompt.size());
  if (prompt_size == 0) {
    return FieldError(spec.prompt_field, "the prompt is empty; it needs at least one token");
  }
  const int64_t room = context_size - prompt_size;
  if (room < 1) {
    return WithDetails(
        absl::InvalidArgumentError(absl::StrCat(
            "the prompt has ", prompt_size, " tokens and leaves no room for an answer: the ",
            "context of this model is ", context_size, " tokens")),
        // Clients look for this code of OpenAI's, shorten their prompt and try again.
        spec.prompt_field, "context_length_exceeded");
  }
  const std::string& field = spec.max_tokens_field;
  if (spec.max_tokens) {
    RETURN_IF_ERROR(CheckInteger(field, *spec.max_tokens, 1, std::numeric_limits<int32_t>::max()));
    // A length that the client names is refused and not cut: it would get less than it asked for,
    // without a word.
    if (*spec.max_tokens > room) {
      return WithDetails(
          absl::InvalidArgumentError(absl::StrCat(
              field, " is ", *spec.max_tokens, ", which with the ", prompt_size,
              " tokens of the prompt exceeds the model's context of ", context_size, " tokens")),
          field, "context_length_exceeded");
    }
  }
  // A default is cut: it must not make a request fail that says nothing of its length.
  const int64_t otherwise = std::min(spec.max_tokens_default.value_or(room), room);
  request->max_tokens = static_cast<int>(spec.max_tokens.value_or(otherwise));
  const int64_t min_tokens = spec.min_tokens.value_or(0);
  RETURN_IF_ERROR(CheckInteger("min_tokens", min_tokens, 0, request->max_tokens));
  request->min_tokens = static_cast<int>(min_tokens);
  return absl::OkStatus();
}

absl::Status FillStops(const FrontendContext& context, const GenerateSpec& spec, Request* request) {
  const FrontendLimits& limits = context.limits;
  for (const auto& [field, size] : {std::pair{"stop", spec.answer.stop.size()},
                                    std::pair{"stop_token_ids", spec.stop_token_ids.size()}}) {
    if (static_cast<int64_t>(size) <= limits.stop_count_max) continue;
    return FieldError(field, absl::StrCat(field, " has ", size, " elements, at most ",
                                          limits.stop_count_max, " are allowed"));
  }
  // The core looks for each of them at every token of the answer, so size and number are limited.
  for (const std::string& stop : spec.answer.stop) {
    if (!stop.empty() && static_cast<int64_t>(stop.size()) <= limits.stop_bytes_max) continue;
    return FieldError(
        "stop", absl::StrCat("stop has a string of ", stop.size(), " bytes, it must be within [1, ",
                             limits.stop_bytes_max, "]"));
  }
  RETURN_IF_ERROR(CheckIds(context, "stop_token_ids", spec.stop_token_ids));
  request->answer = spec.answer;
  request->stop_token_ids = spec.stop_token_ids;
  // The ends of sentence travel with the client's own stop ids, so a rank knows one rule for both.
  if (!spec.ignore_eos) {
    request->stop_token_ids.insert(request->stop_token_ids.end(), context.defaults.eos_ids.begin(),
                                   context.defaults.eos_ids.end());
  }
  return absl::OkStatus();
}

absl::Status FillRest(const FrontendContext& context, const GenerateSpec& spec, Request* request) {
  const FrontendLimits& limits = context.limits;
  RETURN_IF_ERROR(CheckInteger("n", spec.choices.value_or(1), 1, limits.choices_max));
  request->choices = static_cast<int>(spec.choices.value_or(1));
  if (spec.logprobs) {
    RETURN_IF_ERROR(CheckInteger(spec.logprobs_field, *spec.logprobs, 0, limits.logprobs_max));
    request->logprobs = static_cast<int>(*spec.logprobs);
  }
  request->prompt_logprobs = spec.prompt_logprobs;
  RETURN_IF_ERROR(CheckInteger("priority", spec.priority.value_or(0),
                               std::numeric_limits<int32_t>::min(),
                               std::numeric_limits<int32_t>::max()));
  request->priority = static_cast<int>(spec.priority.value_or(0));
  const double timeout = spec.timeout_seconds.value_or(0);
  RETURN_IF_ERROR(
      CheckNumber("timeout_seconds", timeout, 0, absl::ToDoubleSeconds(limits.timeout_max)));
  // The deadline counts from here on, so the time in the queue is a part of it (protocol.md 2.7).
  request->deadline = context.clock.Now() + (timeout > 0 ? absl::Seconds(timeout) : limits.timeout);
  if (spec.id.size() > kIdBytesMax) {
    return FieldError("request_id", absl::StrCat("request_id has ", spec.id.size(),
                                                 " bytes, at most ", kIdBytesMax));
  }
  // A client that knows the id of a request may cancel it, so a drawn id must not be guessable.
  request->id = spec.id.empty() ? DrawId(context.random) : spec.id;
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModel(const FrontendContext& context, const std::string& model) {
  const std::vector<std::string> names = context.inference.model().names;
  if (model.empty() || std::find(names.begin(), names.end(), model) != names.end()) {
    return absl::OkStatus();
  }
  const std::string shown = model.substr(0, kIdBytesMax);
  return WithDetails(
      absl::NotFoundError(absl::StrCat(
          "the model \"", shown, "\" is not served here; served: ", absl::StrJoin(names, ", "))),
      "model", "model_not_found");
}

std::string ModelName(const FrontendContext& context) {
  const std::vector<std::string> names = context.inference.model().names;
  return names.empty() ? "" : names.front();
}

absl::StatusOr<std::vector<int32_t>> PromptFromText(const FrontendContext& context,
                                                    const std::string& text, bool add_special) {
  return context.tokenizer->Encode(text, {.add_special_tokens = add_special});
}

absl::StatusOr<std::vector<int32_t>> PromptFromChat(const FrontendContext& context,
                                                    const text::ChatInput& input) {
  if (context.chat_template == nullptr) {
    return FieldError("messages", "this model has no chat template; use /v1/completions");
  }
  absl::StatusOr<std::vector<int32_t>> ids =
      context.chat_template->RenderToTokens(*context.tokenizer, input);
  if (ids.ok()) return ids;
  return WithDetails(ids.status(), "messages", "");
}

absl::Status CheckIds(const FrontendContext& context, const std::string& field,
                      const std::vector<int32_t>& ids) {
  const int vocab_size = context.inference.model().vocab_size;
  // A rank looks ids up in its embedding, so an id beyond the vocabulary must not reach it.
  const int limit = vocab_size > 0 ? vocab_size : context.tokenizer->vocab_size();
  for (const int32_t id : ids) {
    if (id >= 0 && id < limit) continue;
    return FieldError(field, absl::StrCat(field, " has the token id ", id,
                                          ", it must be within [0, ", limit - 1, "]"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Request> BuildRequest(const FrontendContext& context, const GenerateSpec& spec,
                                     std::vector<int32_t> prompt) {
  Request request;
  request.prompt = std::move(prompt);
  ASSIGN_OR_RETURN(request.sampling, CompleteSampling(context.defaults.sampling, spec.sampling));
  RETURN_IF_ERROR(FillStops(context, spec, &request));
  RETURN_IF_ERROR(FillRest(context, spec, &request));
  // This comes last, because it alone needs a rank: while none is ready, other errors are told all
  // the same.
  RETURN_IF_ERROR(FillLengths(context, spec, &request));
  return request;
}

std::string DrawId(Random& random) {
  // The first draw has a statement of its own: C++ leaves the order of two draws within one call
  // open, and simulated runs must repeat.
  const uint64_t high = random.Next();
  return absl::StrFormat("%016x%016x", high, random.Next());
}

}  // namespace epic::coordinator
