// JoinToken: the secret that lets workers into a world, and the keys that come of it (protocol.md
// §8). Each side proves to the other that it has the token without telling it: an HMAC-SHA256 over
// both nonces and what was said in the hellos.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace epic::cluster {

// What a proof is about. Each field of it is covered.
struct JoinFacts {
  std::string worker_nonce;
  std::string coordinator_nonce;
  uint64_t term = 0;        // of the coordinator
  uint64_t generation = 0;  // of the worker
  std::string profile;      // of the worker
  std::string build_id;     // of the worker
};

enum class JoinSide { kWorker, kCoordinator };

class JoinToken {
 public:
  static constexpr size_t kNonceBytes = 16;
  static constexpr size_t kTokenBytesMin = 16;

  // The file's bytes without white space at their end; a warning if others may read it.
  // InvalidArgument for fewer than kTokenBytesMin; FailedPrecondition if it cannot be read.
  static absl::StatusOr<JoinToken> ReadFile(const std::string& path);
  explicit JoinToken(std::string secret) : secret_(std::move(secret)) {}

  std::string Prove(JoinSide side, const JoinFacts& facts) const;
  // In constant time.
  bool Verify(JoinSide side, const JoinFacts& facts, std::string_view proof) const;

 private:
  std::string secret_;
};

// 32 bytes for the hello between two ranks of a term, the same for (a, b) and (b, a).
std::string PairKey(std::string_view secret, uint64_t term, int a, int b);

}  // namespace epic::cluster
