#include "kernels/check.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace epic::kernels {

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  // abort leaves a core that shows the state that broke the rule, and no destructor runs over that
  // state.
  std::abort();
}

void CheckFailed(const char* file, int line, const char* condition, const char* format, ...) {
  std::fprintf(stderr, "%s:%d: check failed: %s (", file, line, condition);
  va_list values;
  va_start(values, format);
  std::vfprintf(stderr, format, values);
  va_end(values);
  std::fprintf(stderr, ")\n");
  std::abort();
}

}  // namespace epic::kernels
