#include "worker/machine.h"

#include <unistd.h>

#include <fstream>

namespace epic::worker {

std::string HostName() {
  // Containers of one machine have different host names and the same boot id.
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  // The first 32 bits tell the machines of one world apart.
  return id.substr(0, id.find('-'));
}

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  file >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace epic::worker
