// Journal: the tokens of one request, choice by choice, append-only, and the truth about them
// (protocol.md §2). The core appends; client streams are cursors into it.
#pragma once

#include <climits>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/inference.h"

namespace epic::coordinator {

enum class AppendResult {
  kAppended,
  kRepeated,  // a lower position with the same token: dropped
  kMismatch,  // a lower position with another token: dropped, and a bug somewhere
  kStale,     // of an attempt that is not the current one, or after the end: dropped
  kGap,       // beyond the end: dropped, to be asked for again
};

// Thread-safe.
class Journal {
 public:
  explicit Journal(int choices) : choices_(choices) {}

  // Appends `token` if `attempt` is the current one and `position` the length.
  AppendResult Append(int choice, uint32_t attempt, int position, JournalToken token);
  // From now on only tokens of the next attempt are taken; returns its number.
  uint32_t BeginAttempt(int choice);
  // Ends a choice, once; what comes later is dropped.
  void Seal(int choice, FinishReason finish, absl::Status error = absl::OkStatus());

  bool sealed(int choice) const;
  bool all_sealed() const;
  std::vector<int32_t> Tokens(int choice) const;
  int length(int choice) const;
  // As RequestStream::Read. Appends wait for at most the copy of `count_max` tokens.
  Slice Read(int choice, int from, int count_max = INT_MAX) const;

  // The first attempt's say.
  void SetPrompt(int cached_tokens, std::vector<JournalToken> logprobs);
  bool prompt_known() const;
  int cached_tokens() const;
  std::vector<JournalToken> prompt_logprobs() const;

  // Also calls `listener` at once.
  void SetListener(std::function<void()> listener);
  // Calls the listener: the journal has grown or ended.
  void Notify() const;

 private:
  struct Choice {
    uint32_t attempt = 0;
    std::vector<JournalToken> tokens;
    FinishReason finish = v1::FINISH_REASON_NONE;
    absl::Status error;
  };

  mutable absl::Mutex mutex_;
  std::vector<Choice> choices_ ABSL_GUARDED_BY(mutex_);
  bool prompt_known_ ABSL_GUARDED_BY(mutex_) = false;
  int cached_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<JournalToken> prompt_logprobs_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> listener_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace epic::coordinator
