#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

namespace epic::text {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase(stops_, "");
}

std::string StopStrings::Push(std::string_view text) {
  if (matched_) return {};
  // held_ is the longest end of the text that may begin a stop string, so a match that spans calls
  // is found in it, and no match lies wholly before it.
  held_ += text;
  size_t match_start = 0, match_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t start = held_.find(stop);
    if (start == std::string::npos) continue;
    const size_t end = start + stop.size();
    // The first to be complete: that is where a reader token by token would have stopped.
    if (end > match_end || (end == match_end && start >= match_start)) continue;
    match_start = start;
    match_end = end;
    matched_ = stop;
  }
  if (matched_) {
    std::string sent = held_.substr(0, match_start);
    held_.clear();
    return sent;
  }
  std::string sent = held_.substr(0, held_.size() - HeldBytes());
  held_.erase(0, sent.size());
  return sent;
}

size_t StopStrings::HeldBytes() const {
  // At most the longest stop string less one byte, so a stream lags by a bounded amount.
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    size_t length = std::min(stop.size() - 1, held_.size());
    while (length > longest && !held_.ends_with(std::string_view(stop).substr(0, length))) {
      --length;
    }
    longest = std::max(longest, length);
  }
  return longest;
}

std::string StopStrings::Flush() { return std::exchange(held_, ""); }

}  // namespace epic::text
