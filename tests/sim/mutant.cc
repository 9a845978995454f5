#include "base/mutant.h"

#include <cstdlib>
#include <string>

namespace epic {

bool Mutant(std::string_view name) {
  static const std::string chosen = [] {
    const char* value = std::getenv("EPIC_MUTANT");
    return std::string(value == nullptr ? "" : value);
  }();
  return name == chosen;
}

}  // namespace epic
