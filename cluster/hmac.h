// HMAC-SHA256 (RFC 2104), with which processes that share a key prove it over nonces.
#pragma once

#include <string>
#include <string_view>

namespace epic::cluster {

// 32 bytes. The key may be empty: then it proves nothing.
std::string HmacSha256(std::string_view key, std::string_view message);

// Equality in a time that tells nothing of where they differ.
bool SameProof(std::string_view a, std::string_view b);

}  // namespace epic::cluster
