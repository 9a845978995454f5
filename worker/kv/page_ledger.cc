#include "worker/kv/page_ledger.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutant.h"

namespace epic::worker {

PageLease::PageLease(PageLease&& other) noexcept
    : ledger_(std::exchange(other.ledger_, nullptr)), id_(other.id_) {}

PageLease& PageLease::operator=(PageLease&& other) noexcept {
  std::swap(ledger_, other.ledger_);
  std::swap(id_, other.id_);
  return *this;
}

PageLease::~PageLease() {
  if (ledger_ == nullptr) return;
  Clear();
  ledger_->leases_.erase(id_);
}

bool PageLease::Grow(int count) {
  CHECK(ledger_ != nullptr);
  return ledger_->Grow(id_, count);
}

void PageLease::Clear() {
  CHECK(ledger_ != nullptr);
  ledger_->Clear(id_);
}

std::span<const int32_t> PageLease::pages() const {
  if (ledger_ == nullptr) return {};
  return ledger_->leases_.at(id_);
}

PageLedger::PageLedger(int page_count, std::function<void(int32_t page)> on_lease)
    : page_count_(page_count), on_lease_(std::move(on_lease)) {
  CHECK_GE(page_count, 0);
  free_.reserve(page_count);
  for (int page = page_count - 1; page >= 0; --page) free_.push_back(page);
}

PageLease PageLedger::Open() {
  leases_[next_lease_];
  return PageLease(this, next_lease_++);
}

bool PageLedger::Grow(uint64_t lease, int count) {
  CHECK_GE(count, 0);
  if (count > free_count()) return false;
  std::vector<int32_t>& pages = leases_.at(lease);
  for (int i = 0; i < count; ++i) {
    pages.push_back(free_.back());
    free_.pop_back();
    if (on_lease_) on_lease_(pages.back());
  }
  return true;
}

void PageLedger::Clear(uint64_t lease) {
  std::vector<int32_t>& pages = leases_.at(lease);
  if (EPIC_MUTANT("a_page_is_lost") && pages.size() > 1) pages.pop_back();
  free_.insert(free_.end(), pages.rbegin(), pages.rend());
  pages.clear();
}

absl::Status PageLedger::CheckIntegrity() const {
  std::vector<uint64_t> holder(page_count_, 0);  // 0: nobody seen; a lease's id; ~0: the free list
  int64_t seen = 0;
  const auto take = [&](int32_t page, uint64_t who) -> absl::Status {
    if (page < 0 || page >= page_count_) {
      return absl::InternalError(absl::StrCat("page ", page, " of ", page_count_, " held"));
    }
    if (holder[page] != 0) {
      return absl::InternalError(absl::StrCat("page ", page, " held twice"));
    }
    holder[page] = who;
    ++seen;
    return absl::OkStatus();
  };
  for (int32_t page : free_) {
    if (absl::Status status = take(page, ~uint64_t{0}); !status.ok()) return status;
  }
  for (const auto& [id, pages] : leases_) {
    for (int32_t page : pages) {
      if (absl::Status status = take(page, id); !status.ok()) return status;
    }
  }
  if (seen == page_count_) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(seen, " of ", page_count_, " pages accounted for"));
}

}  // namespace epic::worker
