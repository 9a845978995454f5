#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace epic::internal {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  message_ << file << ":" << line << " CHECK failed: " << condition << " ";
}

CheckFailure::~CheckFailure() {
  // Straight to stderr: the logger's own invariants may be what broke.
  std::fprintf(stderr, "%s\n", message_.str().c_str());
  std::fflush(stderr);
  // Abort and not exit: destructors must not run on a state that is known to be wrong, and a core
  // file shows it as it was.
  std::abort();
}

}  // namespace epic::internal
