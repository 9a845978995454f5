#include "worker/exchange/rank_class.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"

namespace epic::worker {

RankClass::RankClass(cluster::Collective& collective, std::string_view mine)
    : collective_(collective), theirs_(collective.size()) {
  // Texts are padded with zeros, so all ranks send the same number of bytes.
  std::ranges::copy(mine.substr(0, kBytesMax), mine_.begin());
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> receive;
  for (Text& text : theirs_) {
    send.push_back(std::as_bytes(std::span(mine_)));
    receive.push_back(std::as_writable_bytes(std::span(text)));
  }
  operation_ = collective.StartAllToAll(send, receive);
}

absl::StatusOr<bool> RankClass::Agreed() {
  const absl::StatusOr<bool> done = collective_.Done(operation_);
  if (!done.ok() || !*done) return done;
  const auto text = [&](size_t rank) {
    return std::string(theirs_[rank].begin(), std::ranges::find(theirs_[rank], '\0'));
  };
  for (size_t rank = 1; rank < theirs_.size(); ++rank) {
    // All ranks compare with rank 0, so all of them name the same two.
    if (theirs_[rank] == theirs_[0]) continue;
    return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " is ", text(rank),
                                                      ", rank 0 is ", text(0),
                                                      "; all ranks of a world must be alike"));
  }
  return true;
}

}  // namespace epic::worker
