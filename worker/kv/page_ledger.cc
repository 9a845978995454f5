#include "worker/kv/page_ledger.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutant.h"

namespace epic::worker {

PageLease::PageLease(PageLease&& other) noexcept
    : ledger_(std::exchange(other.ledger_, nullptr)), pages_(std::move(other.pages_)) {}

// The other one's destructor gives back what this one held.
PageLease& PageLease::operator=(PageLease&& other) noexcept {
  std::swap(ledger_, other.ledger_);
  std::swap(pages_, other.pages_);
  return *this;
}

PageLease::~PageLease() {
  if (ledger_ == nullptr) return;
  Shrink(0);
  CHECK_EQ(ledger_->leases_.erase(pages_.get()), 1u);
}

bool PageLease::Grow(int count) {
  CHECK(ledger_ != nullptr);
  return ledger_->Grow(*pages_, count);
}

void PageLease::Shrink(int page_count) {
  CHECK(ledger_ != nullptr);
  ledger_->Shrink(*pages_, page_count);
}

std::span<const int32_t> PageLease::pages() const {
  if (ledger_ == nullptr) return {};
  return *pages_;
}

// Low pages are leased first, and freed ones before those that were never leased: a pool that is
// never full stays within few of its pages.
PageLedger::PageLedger(int page_count, std::function<void(int32_t page)> on_lease)
    : page_count_(page_count), on_lease_(std::move(on_lease)) {
  CHECK_GE(page_count, 0);
  free_.reserve(page_count);
  for (int page = page_count - 1; page >= 0; --page) free_.push_back(page);
}

PageLedger::~PageLedger() { CHECK(leases_.empty()) << leases_.size() << " leases outlive it"; }

// On the heap, so that the pages keep their address when the lease moves.
PageLease PageLedger::Open() {
  auto pages = std::make_unique<PageLease::Pages>();
  leases_.insert(pages.get());
  return PageLease(this, std::move(pages));
}

bool PageLedger::Grow(PageLease::Pages& pages, int count) {
  CHECK_GE(count, 0);
  // Refused before anything changes: the caller may push another lease out and try again.
  if (count > free_count()) return false;
  for (int i = 0; i < count; ++i) {
    pages.push_back(free_.back());
    free_.pop_back();
    if (on_lease_) on_lease_(pages.back());
  }
  return true;
}

void PageLedger::Shrink(PageLease::Pages& pages, int page_count) {
  const auto kept = static_cast<size_t>(page_count);
  CHECK(page_count >= 0 && kept <= pages.size()) << page_count << " of " << pages.size();
  if (EPIC_MUTANT("a_page_is_lost") && pages.size() > kept + 1) pages.pop_back();
  // In reverse, so that a lease that grows again gets them in the order that it had them.
  free_.insert(free_.end(), pages.rbegin(), pages.rend() - static_cast<ptrdiff_t>(kept));
  pages.resize(kept);
}

// Each page is seen once, in the free list or in a lease. The count finds pages that are nowhere.
absl::Status PageLedger::CheckIntegrity() const {
  std::vector<bool> seen(page_count_);
  int64_t count = 0;
  const auto take = [&](std::span<const int32_t> pages) -> absl::Status {
    for (const int32_t page : pages) {
      if (page < 0 || page >= page_count_) {
        return absl::InternalError(absl::StrCat("page ", page, " of ", page_count_, " held"));
      }
      if (seen[page]) return absl::InternalError(absl::StrCat("page ", page, " held twice"));
      seen[page] = true;
      ++count;
    }
    return absl::OkStatus();
  };
  if (absl::Status status = take(free_); !status.ok()) return status;
  for (const PageLease::Pages* pages : leases_) {
    if (absl::Status status = take(*pages); !status.ok()) return status;
  }
  if (count == page_count_) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(count, " of ", page_count_, " pages accounted for"));
}

}  // namespace epic::worker
