// The messages of a chat request, checked and brought into the one form that chat templates read.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/frontend/json_fields.h"

namespace epic::coordinator {

// Roles: system (developer counts as such), user, assistant, tool. A content of text parts becomes
// one string, joined by newlines; `reasoning` and `reasoning_content` are the same thing, and the
// template finds both. InvalidArgument names the message and the field.
absl::StatusOr<Json> ReadMessages(const Json& messages, int message_count_max);

}  // namespace epic::coordinator
