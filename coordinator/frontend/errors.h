// Errors as clients see them. Within the frontends an error is an absl::Status; the field at fault
// and OpenAI's short code travel in its payloads.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace epic::coordinator {

// InvalidArgument about `field`. The message should name field, value and limit.
absl::Status FieldError(std::string_view field, std::string_view message);
// `status` with OpenAI's error.param and error.code; empty ones are left out.
absl::Status WithDetails(absl::Status status, std::string_view param, std::string_view code);

// error.param and error.code of `status`; "" if it has none.
std::string ErrorParam(const absl::Status& status);
std::string ErrorCode(const absl::Status& status);

// 400, 401, 404 …
int HttpStatus(absl::StatusCode code);
// {"error":{"message":…,"type":…,"param":…,"code":…}}
std::string ErrorBody(const absl::Status& status);
// Seconds that a client should wait before it asks again; 0: asking again will not help.
int RetryAfterSeconds(absl::StatusCode code);

}  // namespace epic::coordinator
