// Grammars: which tokens may come next, so that an answer fits a JSON schema, a regular expression
// or a Lark grammar.
//
//   ASSIGN_OR_RETURN(auto vocabulary, GrammarVocabulary::Create(*tokenizer, vocab_size, {eos}));
//   ASSIGN_OR_RETURN(auto matcher, vocabulary->Compile(GrammarKind::kJsonSchema, schema));
//   RETURN_IF_ERROR(matcher->ComputeMask(absl::MakeSpan(mask)));   // bit t: token t may come
//   RETURN_IF_ERROR(matcher->Consume(token));
//
// No program uses grammars yet, only tests do. Their user will be structured output: a request's
// response_format and its tool calls become a constraint of the worker's engine, which masks the
// logits with ComputeMask and takes drafted tokens back with Rollback.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "text/tokenizer.h"

struct EpicTextVocabulary;
struct EpicTextMatcher;

namespace epic::text {

enum class GrammarKind { kJsonSchema, kRegex, kLark };

// The state of one answer within its grammar. One thread at a time.
class GrammarMatcher {
 public:
  ~GrammarMatcher();
  GrammarMatcher(const GrammarMatcher&) = delete;
  GrammarMatcher& operator=(const GrammarMatcher&) = delete;

  // Sets bit t % 32 of mask[t / 32] iff token t may come next. `mask` has
  // GrammarVocabulary::mask_words() words. When nothing but the end may come, that is the end
  // token.
  absl::Status ComputeMask(absl::Span<uint32_t> mask);
  // Takes one token. InvalidArgument, and the state unchanged, if the grammar does not allow it.
  absl::Status Consume(int32_t token);
  // Takes back the last tokens. InvalidArgument if fewer were consumed.
  absl::Status Rollback(int token_count);
  // The tokens that must come next whatever is sampled; perhaps none. They are not consumed.
  absl::StatusOr<std::vector<int32_t>> ForcedTokens();

  // Whether the answer so far is complete (it may still be able to go on).
  absl::StatusOr<bool> IsAccepting();
  // Whether the answer has ended: its end token was consumed, or nothing can follow.
  bool IsStopped() const;

 private:
  friend class GrammarVocabulary;
  GrammarMatcher(EpicTextMatcher* handle, int32_t vocab_size)
      : handle_(handle), vocab_size_(vocab_size) {}

  EpicTextMatcher* handle_;  // owned
  int32_t vocab_size_;
  int consumed_count_ = 0;
};

// The vocabulary as a trie, shared by all grammars over it. Thread-safe.
class GrammarVocabulary {
 public:
  // `vocab_size`: columns of the model's logits; those that name no token are never allowed.
  // `end_ids`: tokens that end an answer, at least one. Holds what it needs of the tokenizer.
  static absl::StatusOr<std::shared_ptr<const GrammarVocabulary>> Create(
      const Tokenizer& tokenizer, int32_t vocab_size, absl::Span<const int32_t> end_ids);
  ~GrammarVocabulary();
  GrammarVocabulary(const GrammarVocabulary&) = delete;
  GrammarVocabulary& operator=(const GrammarVocabulary&) = delete;

  // InvalidArgument: what is wrong with the grammar. The matcher may outlive this.
  absl::StatusOr<std::unique_ptr<GrammarMatcher>> Compile(GrammarKind kind,
                                                          std::string_view grammar) const;

  int32_t vocab_size() const { return vocab_size_; }
  size_t mask_words() const { return (static_cast<size_t>(vocab_size_) + 31) / 32; }

 private:
  GrammarVocabulary(EpicTextVocabulary* handle, int32_t vocab_size)
      : handle_(handle), vocab_size_(vocab_size) {}

  EpicTextVocabulary* handle_;  // owned
  int32_t vocab_size_;
};

}  // namespace epic::text
