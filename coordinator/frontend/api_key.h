// API keys: "Authorization: Bearer KEY".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace epic::coordinator {

// Unauthenticated unless there are no keys, or `authorization` carries one of them. Takes the same
// time for every wrong key of a length.
absl::Status CheckApiKey(const std::vector<std::string>& keys, std::string_view authorization);

}  // namespace epic::coordinator
