// StopStrings: ends a text stream at the first of some strings, without ever having sent a part of
// it.
//
//   StopStrings stop({"\n\n", "User:"});
//   Send(stop.Push(text));               // holds back what may be the start of a stop string
//   if (stop.matched()) Cancel();
//   Send(stop.Flush());                  // the stream ended without a match: the held part
//
// The string that is complete first wins; of two that end together, the longer. So how the text is
// cut into calls changes nothing. The stop string itself is not sent; who wants it appends
// *matched().
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace epic::text {

// One stream, one thread.
class StopStrings {
 public:
  // Empty stop strings are ignored.
  explicit StopStrings(std::vector<std::string> stops);

  // What can be sent now. After a match: "" for ever.
  std::string Push(std::string_view text);
  std::string Flush();
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  // Length of the longest end of held_ that starts a stop string.
  size_t HeldBytes() const;

  std::vector<std::string> stops_;
  std::string held_;
  std::optional<std::string> matched_;
};

}  // namespace epic::text
