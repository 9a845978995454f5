// Deaths: what is known of a sequence whose ranks died under it (protocol.md §5). A request that
// kills each rank that computes it is found without harm to others: the first death marks nobody,
// for a rank that is killed takes many along; a second one at the same token makes a suspect, which
// runs alone on its rank until it has made a token; what kills a rank alone twice is not tried
// again.
#pragma once

namespace epic::coordinator {

class Deaths {
 public:
  enum class Verdict { kGoesOn, kSuspect, kQuarantine };

  // Its rank died, and nobody knows why, when `length` tokens were generated. `alone`: no other
  // sequence was there.
  Verdict OnDeath(int length, bool alone) {
    if (length > length_) count_ = alone_count_ = 0;
    length_ = length;
    ++count_;
    alone_count_ += alone ? 1 : 0;
    if (alone_count_ >= 2) return Verdict::kQuarantine;
    suspect_ = count_ >= 2;
    return suspect_ ? Verdict::kSuspect : Verdict::kGoesOn;
  }
  // It made a token: what killed its ranks lies behind it, or was not its doing.
  void OnToken() { suspect_ = false; }
  bool suspect() const { return suspect_; }

 private:
  int length_ = -1;
  int count_ = 0;  // at this length
  int alone_count_ = 0;
  bool suspect_ = false;
};

}  // namespace epic::coordinator
