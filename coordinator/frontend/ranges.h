// Checks of a client's numbers: InvalidArgument naming field, value and limits.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/frontend/errors.h"

namespace epic::coordinator {

// Whether `value` lies within [low, high], or (low, high] if `low_open`. NaN never does.
inline absl::Status CheckNumber(const std::string& field, double value, double low, double high,
                                bool low_open = false) {
  if (value <= high && (low_open ? value > low : value >= low)) return absl::OkStatus();
  return FieldError(field, absl::StrCat(field, " is ", value, ", it must be within ",
                                        low_open ? "(" : "[", low, ", ", high, "]"));
}

inline absl::Status CheckInteger(const std::string& field, int64_t value, int64_t low,
                                 int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return FieldError(
      field, absl::StrCat(field, " is ", value, ", it must be within [", low, ", ", high, "]"));
}

}  // namespace epic::coordinator
