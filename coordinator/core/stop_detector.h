// StopDetector: tells when a choice's text contains a stop string.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/detokenizer.h"
#include "text/stop_strings.h"

namespace epic::coordinator {

// A pure function of the tokens; one choice, on the loop's thread.
class StopDetector {
 public:
  StopDetector(std::shared_ptr<const text::Tokenizer> tokenizer, std::vector<std::string> stops)
      : tokenizer_(std::move(tokenizer)),
        detokenizer_(*tokenizer_, /*skip_special=*/true),
        stops_(std::move(stops)) {}

  // True from the token on that completes a stop string.
  bool Push(int32_t token) {
    stops_.Push(detokenizer_.Push(token));
    return stops_.matched().has_value();
  }

 private:
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  text::IncrementalDetokenizer detokenizer_;
  text::StopStrings stops_;
};

}  // namespace epic::coordinator
