// PageLedger: who holds which KV page. It knows ids alone; the bytes are KvPool's.
//
//   PageLease lease = ledger.Open();
//   if (!lease.Grow(2)) ...;           // refused: nothing changed
//   plan.pages = lease.pages();        // in order of position: page i holds tokens 64·i ..
//
// One thread. The ledger outlives its leases.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/kv_view.h"

namespace epic::worker {

class PageLedger;

// How many pages hold `tokens` records.
constexpr int PagesFor(int64_t tokens) {
  return static_cast<int>((tokens + kernels::kPageTokens - 1) / kernels::kPageTokens);
}

// A hold on pages by one owner; given back when destroyed. Move-only.
class PageLease {
 public:
  PageLease() = default;
  PageLease(PageLease&& other) noexcept;
  PageLease& operator=(PageLease&& other) noexcept;
  ~PageLease();

  // Adds `count` pages, all or none: false leaves the lease as it was. Each page added has been
  // handed to the ledger's on_lease.
  bool Grow(int count);
  // Gives back all but the first `page_count` pages, which are at most those that it has.
  void Shrink(int page_count);

  std::span<const int32_t> pages() const;
  int page_count() const { return static_cast<int>(pages().size()); }

 private:
  friend class PageLedger;
  using Pages = std::vector<int32_t>;
  PageLease(PageLedger* ledger, std::unique_ptr<Pages> pages)
      : ledger_(ledger), pages_(std::move(pages)) {}

  PageLedger* ledger_ = nullptr;
  std::unique_ptr<Pages> pages_;  // the ledger knows them by their address
};

class PageLedger {
 public:
  // Pages are 0 .. page_count-1. `on_lease` sees each page before its new owner does (KvPool zeroes
  // it there: a record never written must not be a NaN).
  explicit PageLedger(int page_count, std::function<void(int32_t page)> on_lease = nullptr);
  PageLedger(const PageLedger&) = delete;
  ~PageLedger();

  // An empty lease of this ledger.
  PageLease Open();

  int page_count() const { return page_count_; }
  int free_count() const { return static_cast<int>(free_.size()); }
  int used_count() const { return page_count_ - free_count(); }

  // Internal, naming the page or the counts, unless every page is either free or in exactly one
  // lease. Reads everything: for tests and idle moments.
  absl::Status CheckIntegrity() const;

 private:
  friend class PageLease;
  bool Grow(PageLease::Pages& pages, int count);
  void Shrink(PageLease::Pages& pages, int page_count);

  int page_count_;
  std::function<void(int32_t)> on_lease_;
  std::vector<int32_t> free_;  // taken from the back
  std::set<const PageLease::Pages*> leases_;
};

}  // namespace epic::worker
