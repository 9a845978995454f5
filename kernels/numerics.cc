#include "kernels/numerics.h"

namespace epic::kernels {

std::string NumericProfile(const std::string& family, const std::string& types,
                           const std::string& kv, PromptAttention form) {
  // All that fixes bits must appear here: equal strings promise equal bits, and clients see this
  // one in system_fingerprint.
  return std::string(kNumericsVersion) + "/" + family + "/" + types + ",kv:" + kv + "/" +
         PromptAttentionName(form) + "/split" + std::to_string(kSplitTokens);
}

}  // namespace epic::kernels
