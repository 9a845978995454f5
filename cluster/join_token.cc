#include "cluster/join_token.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cluster/hmac.h"

namespace epic::cluster {
namespace {

void AddNumber(std::string& bytes, uint64_t number) {
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(number >> (8 * i)));
}

// With its length, so that no two lists of fields give the same bytes.
void AddField(std::string& bytes, std::string_view field) {
  AddNumber(bytes, field.size());
  bytes.append(field);
}

}  // namespace

absl::StatusOr<JoinToken> JoinToken::ReadFile(const std::string& path) {
  struct stat info = {};
  std::ifstream file(path, std::ios::binary);
  if (!file || stat(path.c_str(), &info) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("--join-token-file: cannot read ", path));
  }
  if (S_ISREG(info.st_mode) && (info.st_mode & S_IRWXO) != 0) {
    LOG_WARNING("--join-token-file: others than its owner and group may use {}", path);
  }
  std::ostringstream bytes;
  bytes << file.rdbuf();
  std::string secret = bytes.str();
  while (!secret.empty() && std::isspace(static_cast<unsigned char>(secret.back())) != 0) {
    secret.pop_back();
  }
  if (secret.size() < kTokenBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat("--join-token-file: ", path, " has ",
                                                   secret.size(), " bytes, at least ",
                                                   kTokenBytesMin, " are needed"));
  }
  return JoinToken(std::move(secret));
}

std::string JoinToken::Prove(JoinSide side, const JoinFacts& facts) const {
  std::string bytes;
  AddField(bytes, side == JoinSide::kWorker ? "epic worker" : "epic coordinator");
  AddField(bytes, facts.worker_nonce);
  AddField(bytes, facts.coordinator_nonce);
  AddNumber(bytes, facts.term);
  AddNumber(bytes, facts.generation);
  AddField(bytes, facts.profile);
  AddField(bytes, facts.build_id);
  return HmacSha256(secret_, bytes);
}

bool JoinToken::Verify(JoinSide side, const JoinFacts& facts, std::string_view proof) const {
  if (facts.worker_nonce.size() != kNonceBytes || facts.coordinator_nonce.size() != kNonceBytes) {
    return false;
  }
  return SameProof(proof, Prove(side, facts));
}

std::string PairKey(std::string_view secret, uint64_t term, int a, int b) {
  std::string bytes;
  AddField(bytes, "epic pair");
  AddNumber(bytes, term);
  AddNumber(bytes, static_cast<uint64_t>(std::min(a, b)));
  AddNumber(bytes, static_cast<uint64_t>(std::max(a, b)));
  return HmacSha256(secret, bytes);
}

}  // namespace epic::cluster
