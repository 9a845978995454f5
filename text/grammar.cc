#include "text/grammar.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "text/rust_abi.h"

namespace epic::text {

GrammarMatcher::~GrammarMatcher() { epic_text_matcher_free(handle_); }

absl::Status GrammarMatcher::ComputeMask(absl::Span<uint32_t> mask) {
  CHECK_EQ(mask.size(), (static_cast<size_t>(vocab_size_) + 31) / 32);
  return CallRust<bool>(epic_text_matcher_mask, handle_, mask.data(), mask.size()).status();
}

absl::Status GrammarMatcher::Consume(int32_t token) {
  // The token may come from another process, so a wrong one is an error and not a CHECK.
  if (token < 0 || token >= vocab_size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("token ", token, " is outside 0..", vocab_size_ - 1));
  }
  RETURN_IF_ERROR(
      CallRust<bool>(epic_text_matcher_consume, handle_, static_cast<uint32_t>(token)).status());
  // Counted only now: a token that the grammar refused cannot be taken back.
  ++consumed_count_;
  return absl::OkStatus();
}

absl::Status GrammarMatcher::Rollback(int token_count) {
  // Checked here, where both numbers can be named.
  if (token_count < 0 || token_count > consumed_count_) {
    return absl::InvalidArgumentError(
        absl::StrCat("rollback of ", token_count, " tokens, ", consumed_count_, " were consumed"));
  }
  RETURN_IF_ERROR(
      CallRust<bool>(epic_text_matcher_rollback, handle_, static_cast<size_t>(token_count))
          .status());
  consumed_count_ -= token_count;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> GrammarMatcher::ForcedTokens() {
  ASSIGN_OR_RETURN(EpicTextIds ids, CallRust<EpicTextIds>(epic_text_matcher_forced, handle_));
  return Take(ids);
}

absl::StatusOr<bool> GrammarMatcher::IsAccepting() {
  return CallRust<bool>(epic_text_matcher_is_accepting, handle_);
}

bool GrammarMatcher::IsStopped() const { return epic_text_matcher_is_stopped(handle_); }

absl::StatusOr<std::shared_ptr<const GrammarVocabulary>> GrammarVocabulary::Create(
    const Tokenizer& tokenizer, int32_t vocab_size, absl::Span<const int32_t> end_ids) {
  CHECK_GE(vocab_size, 0);
  // An id below 0 becomes a huge one, which the Rust side refuses by name.
  const std::vector<uint32_t> ends(end_ids.begin(), end_ids.end());
  ASSIGN_OR_RETURN(
      EpicTextVocabulary * handle,
      CallRust<EpicTextVocabulary*>(epic_text_vocabulary_new, tokenizer.handle(),
                                    static_cast<size_t>(vocab_size), ends.data(), ends.size()));
  return std::shared_ptr<const GrammarVocabulary>(new GrammarVocabulary(handle, vocab_size));
}

GrammarVocabulary::~GrammarVocabulary() { epic_text_vocabulary_free(handle_); }

absl::StatusOr<std::unique_ptr<GrammarMatcher>> GrammarVocabulary::Compile(
    GrammarKind kind, std::string_view grammar) const {
  ASSIGN_OR_RETURN(EpicTextMatcher * handle,
                   CallRust<EpicTextMatcher*>(epic_text_matcher_new, handle_,
                                              static_cast<int32_t>(kind), Slice(grammar)));
  // The matcher has its own reference to the vocabulary, so it may outlive this object.
  return std::unique_ptr<GrammarMatcher>(new GrammarMatcher(handle, vocab_size_));
}

}  // namespace epic::text
