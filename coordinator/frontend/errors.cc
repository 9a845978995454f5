#include "coordinator/frontend/errors.h"

#include <nlohmann/json.hpp>

namespace epic::coordinator {
namespace {

// Names of payloads within a status. They never leave the process: gRPC gets code and text alone,
// and HTTP prints the values.
constexpr std::string_view kParam = "epic/param";
constexpr std::string_view kCode = "epic/code";

std::string Payload(const absl::Status& status, std::string_view url) {
  const absl::optional<absl::Cord> payload =
      status.GetPayload(absl::string_view(url.data(), url.size()));
  return payload ? std::string(*payload) : "";
}

const char* ErrorType(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
      return "invalid_request_error";
    case absl::StatusCode::kNotFound:
      return "not_found_error";
    case absl::StatusCode::kUnauthenticated:
      return "authentication_error";
    case absl::StatusCode::kPermissionDenied:
      return "permission_error";
    case absl::StatusCode::kResourceExhausted:
      return "rate_limit_error";
    case absl::StatusCode::kUnavailable:
      return "service_unavailable_error";
    case absl::StatusCode::kDeadlineExceeded:
      return "timeout_error";
    default:
      return "server_error";
  }
}

}  // namespace

absl::Status WithDetails(absl::Status status, std::string_view param, std::string_view code) {
  const auto set = [&](std::string_view url, std::string_view value) {
    if (value.empty()) return;
    status.SetPayload(absl::string_view(url.data(), url.size()),
                      absl::Cord(absl::string_view(value.data(), value.size())));
  };
  set(kParam, param);
  set(kCode, code);
  return status;
}

absl::Status FieldError(std::string_view field, std::string_view message) {
  return WithDetails(absl::InvalidArgumentError(absl::string_view(message.data(), message.size())),
                     field, "");
}

std::string ErrorParam(const absl::Status& status) { return Payload(status, kParam); }
std::string ErrorCode(const absl::Status& status) { return Payload(status, kCode); }

int HttpStatus(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
      return 503;
    // The deadline of a request has passed (protocol.md 2.7).
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    // All other codes are this server's own faults: nothing that the client sent could be mended.
    default:
      return 500;
  }
}

std::string ErrorBody(const absl::Status& status) {
  // OpenAI's shape has null, and not "", where there is nothing to name.
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  const nlohmann::ordered_json body = {{"error",
                                        {{"message", std::string(status.message())},
                                         {"type", ErrorType(status.code())},
                                         {"param", text_or_null(ErrorParam(status))},
                                         {"code", text_or_null(ErrorCode(status))}}}};
  // A message may quote a client's text, cut within a character, and a strict dump throws on bytes
  // that are not UTF-8.
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

int RetryAfterSeconds(absl::StatusCode code) {
  // Both times are chosen: a full queue has room as soon as some request ends, while a world that
  // is not ready has to load weights or to replace a rank.
  if (code == absl::StatusCode::kResourceExhausted) return 1;
  if (code == absl::StatusCode::kUnavailable) return 5;
  return 0;
}

}  // namespace epic::coordinator
