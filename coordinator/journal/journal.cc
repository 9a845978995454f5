#include "coordinator/journal/journal.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace epic::coordinator {

AppendResult Journal::Append(int choice, uint32_t attempt, int position, JournalToken token) {
  const absl::MutexLock lock(&mutex_);
  Choice& at = choices_[choice];
  // A rank that was given up may still send: only the newest submission of a choice is believed.
  const bool current = attempt == at.attempt && attempt != 0;
  if (!current || at.finish != v1::FINISH_REASON_NONE) return AppendResult::kStale;
  const int length = static_cast<int>(at.tokens.size());
  if (position > length || position < 0) return AppendResult::kGap;
  // It is told again: it must be the token that clients may have read.
  if (position < length) {
    return at.tokens[position].token == token.token ? AppendResult::kRepeated
                                                    : AppendResult::kMismatch;
  }
  at.tokens.push_back(std::move(token));
  CHECK_EQ(static_cast<int>(at.tokens.size()), length + 1);
  return AppendResult::kAppended;
}

uint32_t Journal::BeginAttempt(int choice) {
  const absl::MutexLock lock(&mutex_);
  return ++choices_[choice].attempt;
}

void Journal::Seal(int choice, FinishReason finish, absl::Status error) {
  const absl::MutexLock lock(&mutex_);
  Choice& at = choices_[choice];
  // The first end counts: a cancel and the last token may come at the same time.
  if (at.finish != v1::FINISH_REASON_NONE) return;
  at.finish = finish;
  at.error = std::move(error);
}

bool Journal::sealed(int choice) const {
  const absl::MutexLock lock(&mutex_);
  return choices_[choice].finish != v1::FINISH_REASON_NONE;
}

bool Journal::all_sealed() const {
  const absl::MutexLock lock(&mutex_);
  return std::all_of(choices_.begin(), choices_.end(),
                     [](const Choice& c) { return c.finish != v1::FINISH_REASON_NONE; });
}

std::vector<int32_t> Journal::Tokens(int choice) const {
  const absl::MutexLock lock(&mutex_);
  std::vector<int32_t> tokens;
  tokens.reserve(choices_[choice].tokens.size());
  for (const JournalToken& token : choices_[choice].tokens) tokens.push_back(token.token);
  return tokens;
}

int Journal::length(int choice) const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int>(choices_[choice].tokens.size());
}

Slice Journal::Read(int choice, int from, int count_max) const {
  CHECK_GE(count_max, 0);
  const absl::MutexLock lock(&mutex_);
  const Choice& at = choices_.at(choice);
  const size_t begin = std::min<size_t>(std::max(from, 0), at.tokens.size());
  const size_t count = std::min<size_t>(count_max, at.tokens.size() - begin);
  const auto first = at.tokens.begin() + static_cast<ptrdiff_t>(begin);
  Slice slice{.tokens = {first, first + static_cast<ptrdiff_t>(count)}};
  // A reader that is not at the end must not stop: the end comes with the last token.
  if (begin + count < at.tokens.size()) return slice;
  slice.finish = at.finish;
  slice.error = at.error;
  return slice;
}

void Journal::SetPrompt(int cached_tokens, std::vector<JournalToken> logprobs) {
  const absl::MutexLock lock(&mutex_);
  // Later attempts compute the prompt again, and say the same.
  if (std::exchange(prompt_known_, true)) return;
  cached_tokens_ = cached_tokens;
  prompt_logprobs_ = std::move(logprobs);
}

bool Journal::prompt_known() const {
  const absl::MutexLock lock(&mutex_);
  return prompt_known_;
}

int Journal::cached_tokens() const {
  const absl::MutexLock lock(&mutex_);
  return cached_tokens_;
}

std::vector<JournalToken> Journal::prompt_logprobs() const {
  const absl::MutexLock lock(&mutex_);
  return prompt_logprobs_;
}

void Journal::SetListener(std::function<void()> listener) {
  {
    const absl::MutexLock lock(&mutex_);
    listener_ = listener;
  }
  // Without the lock, and at once: what came before the listener was set is not missed.
  if (listener) listener();
}

void Journal::Notify() const {
  std::function<void()> listener;
  {
    const absl::MutexLock lock(&mutex_);
    // A copy: the listener may be replaced while it is called, and it may read the journal.
    listener = listener_;
  }
  if (listener) listener();
}

}  // namespace epic::coordinator
