#include "coordinator/frontend/output_renderer.h"

namespace epic::coordinator {

OutputRenderer::OutputRenderer(const text::Tokenizer& tokenizer, absl::Span<const int32_t> prompt,
                               std::vector<std::string> stop, RenderOptions options)
    : reasoning_stop_(stop), text_stop_(std::move(stop)) {
  if (options.split_reasoning) {
    parser_.emplace(tokenizer, prompt, options.skip_special);
  } else {
    plain_.emplace(tokenizer, options.skip_special);
  }
}

OutputRenderer::Piece OutputRenderer::Push(int32_t token) {
  if (parser_) return Cut(parser_->Push(token));
  return Cut({.content = plain_->Push(token)});
}

OutputRenderer::Piece OutputRenderer::Finish() {
  Piece piece =
      Cut(parser_ ? parser_->Finish() : text::ReasoningParser::Piece{.content = plain_->Flush()});
  if (!stopped()) piece.reasoning += reasoning_stop_.Flush();
  if (!stopped()) piece.text += text_stop_.Flush();
  return piece;
}

OutputRenderer::Piece OutputRenderer::Cut(text::ReasoningParser::Piece parsed) {
  Piece piece{.reasoning_tokens = parsed.reasoning_tokens};
  if (stopped()) return piece;
  piece.reasoning = reasoning_stop_.Push(parsed.reasoning);
  if (stopped() || parsed.content.empty()) return piece;
  piece.reasoning += reasoning_stop_.Flush();
  piece.text = text_stop_.Push(parsed.content);
  return piece;
}

}  // namespace epic::coordinator
