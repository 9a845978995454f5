// What fixes the bits of results, beside the weights: its version, its one shared constant, and the
// name of the whole (docs/numerics.md).
#pragma once

#include <string>

#include "kernels/backend.h"
#include "kernels/kv_view.h"

namespace epic::kernels {

// A change of any bit of any result bumps it, and the hashes of tests/golden with it.
inline constexpr const char* kNumericsVersion = "epic-numerics-3";

// "epic-numerics-3/<family>/<types>,kv:<kv>/<form>/split512". `types` names weights and activations
// (ProfileTypes in quantize.h); `kv` is how records hold a latent (KvTypeName in kv_view.h).
std::string NumericProfile(const std::string& family, const std::string& types,
                           const std::string& kv, PromptAttention form);

}  // namespace epic::kernels
