#include "coordinator/admission/admission.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::coordinator {

absl::Status Admission::Admit(int64_t tokens) {
  if (requests_ >= limits_.requests_max) {
    return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", requests_,
                                                     " requests, at most ", limits_.requests_max));
  }
  // One request is taken whatever its size: else it would be refused for ever.
  if (requests_ > 0 && tokens_ + tokens > limits_.tokens_max) {
    return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", tokens_, " tokens and ",
                                                     tokens, " more, at most ",
                                                     limits_.tokens_max));
  }
  ++requests_;
  tokens_ += tokens;
  return absl::OkStatus();
}

void Admission::Release(int64_t tokens) {
  --requests_;
  tokens_ -= tokens;
  // A request that is released twice would let the queue grow without a limit.
  CHECK_GE(requests_, 0);
  CHECK_GE(tokens_, 0);
}

}  // namespace epic::coordinator
