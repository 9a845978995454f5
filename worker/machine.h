// What a process can learn of the machine that it runs on.
#pragma once

#include <cstdint>
#include <string>

namespace epic::worker {

// Equal for processes of one machine, until it starts again.
std::string HostName();

// Memory of this process that is in RAM now.
int64_t ResidentBytes();

}  // namespace epic::worker
