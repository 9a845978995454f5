// Macros that pass an absl::Status up.
//
//   RETURN_IF_ERROR(file.Close());
//   ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(folder));
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RETURN_IF_ERROR(expression)            \
  do {                                         \
    absl::Status epic_status = (expression);   \
    if (!epic_status.ok()) return epic_status; \
  } while (false)

#define EPIC_CONCAT_INNER(a, b) a##b
#define EPIC_CONCAT(a, b) EPIC_CONCAT_INNER(a, b)
#define EPIC_ASSIGN_OR_RETURN(value, target, expression) \
  auto value = (expression);                             \
  if (!value.ok()) return std::move(value).status();     \
  target = *std::move(value)
#define ASSIGN_OR_RETURN(target, expression) \
  EPIC_ASSIGN_OR_RETURN(EPIC_CONCAT(epic_value_, __LINE__), target, expression)
