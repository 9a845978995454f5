#include "coordinator/frontend/api_key.h"

#include "absl/strings/match.h"
#include "coordinator/frontend/errors.h"

namespace epic::coordinator {
namespace {

bool SameKey(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  // All bytes are compared. A comparison that ended at the first difference would tell an attacker,
  // by its time, how much of a guess is right.
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= a[i] ^ b[i];
  return difference == 0;
}

}  // namespace

absl::Status CheckApiKey(const std::vector<std::string>& keys, std::string_view authorization) {
  if (keys.empty()) return absl::OkStatus();
  constexpr std::string_view kBearer = "Bearer ";
  bool known = false;
  // The name of the scheme has no case (RFC 9110, section 11.1); the key behind it has.
  if (absl::EqualsIgnoreCase(
          absl::string_view(authorization.data(), authorization.size()).substr(0, kBearer.size()),
          absl::string_view(kBearer.data(), kBearer.size()))) {
    authorization.remove_prefix(kBearer.size());
    // No key ends the loop: the time must not tell which of the keys has matched.
    for (const std::string& key : keys) known |= SameKey(key, authorization);
  }
  if (known) return absl::OkStatus();
  return WithDetails(absl::UnauthenticatedError(
                         "a valid API key is needed: send the header Authorization: Bearer KEY"),
                     "", "invalid_api_key");
}

}  // namespace epic::coordinator
