// Admission: how much work may be accepted at a time. A plain object.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace epic::coordinator {

struct AdmissionLimits {
  int requests_max = 4096;          // accepted and not ended
  int64_t tokens_max = 64'000'000;  // of their prompts and answers at most
};

class Admission {
 public:
  explicit Admission(AdmissionLimits limits) : limits_(limits) {}

  // Takes a request of `tokens` in, or ResourceExhausted naming value and limit (429). One request
  // is always taken when there is no other.
  absl::Status Admit(int64_t tokens);
  // An admitted request has ended.
  void Release(int64_t tokens);

  int requests() const { return requests_; }
  int64_t tokens() const { return tokens_; }

 private:
  const AdmissionLimits limits_;
  int requests_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace epic::coordinator
