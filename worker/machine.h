// Facts about the machine that this process runs on.
#pragma once

#include <cstdint>
#include <string>

namespace epic::worker {

// Processes of one machine get the same name, until the machine starts again.
std::string HostName();

// The memory of this process that is in RAM now.
int64_t ResidentBytes();

}  // namespace epic::worker
