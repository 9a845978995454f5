#include "worker/kv/page_ledger.h"

#include <algorithm>
#include <set>

#include "base/sim_loop.h"
#include "gtest/gtest.h"

namespace epic::worker {
namespace {

TEST(PageLedgerTest, RefusesWhatItDoesNotHaveAndChangesNothing) {
  PageLedger ledger(3);
  PageLease first = ledger.Open();
  ASSERT_TRUE(first.Grow(2));
  PageLease second = ledger.Open();
  EXPECT_FALSE(second.Grow(2));
  EXPECT_EQ(second.page_count(), 0);
  EXPECT_EQ(ledger.free_count(), 1);
  EXPECT_TRUE(second.Grow(1));
  EXPECT_TRUE(ledger.CheckIntegrity().ok());
}

TEST(PageLedgerTest, GivesPagesBackWhenALeaseEnds) {
  PageLedger ledger(4);
  {
    PageLease lease = ledger.Open();
    ASSERT_TRUE(lease.Grow(4));
    PageLease moved = std::move(lease);
    EXPECT_EQ(moved.page_count(), 4);
    EXPECT_EQ(ledger.used_count(), 4);
  }
  EXPECT_EQ(ledger.used_count(), 0);
  EXPECT_TRUE(ledger.CheckIntegrity().ok());
}

TEST(PageLedgerTest, AssigningALeaseReleasesTheOneBefore) {
  PageLedger ledger(4);
  PageLease lease = ledger.Open();
  ASSERT_TRUE(lease.Grow(3));
  lease = ledger.Open();
  EXPECT_EQ(lease.page_count(), 0);
  EXPECT_EQ(ledger.used_count(), 0);
}

TEST(PageLedgerTest, ShowsEachPageToItsHookBeforeTheOwner) {
  std::vector<int32_t> seen;
  PageLedger ledger(3, [&](int32_t page) { seen.push_back(page); });
  PageLease lease = ledger.Open();
  ASSERT_TRUE(lease.Grow(2));
  EXPECT_EQ(seen, std::vector<int32_t>(lease.pages().begin(), lease.pages().end()));
  lease.Shrink(0);
  ASSERT_TRUE(lease.Grow(1));
  EXPECT_EQ(seen.size(), 3);
}

TEST(PageLedgerTest, NeverHandsAPageToTwoOwnersInAnyOrderOfGrowthAndRelease) {
  SeededRandom random(7);
  PageLedger ledger(64);
  std::vector<PageLease> leases(10);
  for (PageLease& lease : leases) lease = ledger.Open();
  for (int i = 0; i < 5000; ++i) {
    PageLease& lease = leases[random.Next() % leases.size()];
    if (random.Next() % 4 == 0) {
      const std::vector<int32_t> before(lease.pages().begin(), lease.pages().end());
      const int kept = static_cast<int>(random.Next() % (before.size() + 1));
      lease.Shrink(kept);
      ASSERT_TRUE(std::ranges::equal(lease.pages(), std::span(before).first(kept)));
    } else {
      lease.Grow(static_cast<int>(random.Next() % 5));
    }
    ASSERT_TRUE(ledger.CheckIntegrity().ok()) << ledger.CheckIntegrity();
    std::set<int32_t> held;
    for (const PageLease& each : leases) held.insert(each.pages().begin(), each.pages().end());
    ASSERT_EQ(held.size(), ledger.used_count());
  }
}

}  // namespace
}  // namespace epic::worker
