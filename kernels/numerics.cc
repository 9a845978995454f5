#include "kernels/numerics.h"

namespace epic::kernels {

std::string NumericProfile(const std::string& family, const std::string& types,
                           const std::string& kv, PromptAttention form) {
  return std::string(kNumericsVersion) + "/" + family + "/" + types + ",kv:" + kv + "/" +
         PromptAttentionName(form) + "/split" + std::to_string(kSplitTokens);
}

}  // namespace epic::kernels
