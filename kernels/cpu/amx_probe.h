// Whether the CPU's tile unit can be used.
#pragma once

#include <string>

namespace epic::kernels {

// Why the tile unit cannot be used: CPUID, the system's permission, or a product that comes out
// wrong. Empty: it works. The first call asks the system for its permission. Thread-safe.
const std::string& AmxFailure();

}  // namespace epic::kernels
