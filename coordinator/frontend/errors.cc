#include "coordinator/frontend/errors.h"

#include <nlohmann/json.hpp>

namespace epic::coordinator {
namespace {

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
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorBody(const absl::Status& status) {
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  const nlohmann::ordered_json body = {{"error",
                                        {{"message", std::string(status.message())},
                                         {"type", ErrorType(status.code())},
                                         {"param", text_or_null(ErrorParam(status))},
                                         {"code", text_or_null(ErrorCode(status))}}}};
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

int RetryAfterSeconds(absl::StatusCode code) {
  if (code == absl::StatusCode::kResourceExhausted) return 1;
  if (code == absl::StatusCode::kUnavailable) return 5;
  return 0;
}

}  // namespace epic::coordinator
