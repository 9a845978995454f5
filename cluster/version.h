// What two programs must share to speak to each other; checked when a control stream opens.
#pragma once

#include <cstdint>

namespace epic::cluster {

inline constexpr uint32_t kProtocolVersion = 1;
// The version of all programs of this build.
inline constexpr char kBuildId[] = "0.1.0";

}  // namespace epic::cluster
