#include "worker/kv/kv_pool.h"

#include <cstring>

#include "gtest/gtest.h"
#include "kernels/reference/reference_backend.h"
#include "worker/kv/page_ledger.h"

namespace epic::worker {
namespace {

constexpr kernels::KvLayout kLayout{.latent_dim = 20, .rope_dim = 6};

TEST(KvPoolTest, ShowsOneSlabPerLayerOfRecordsPaddedTo16Bytes) {
  const auto backend = kernels::MakeReferenceBackend({});
  KvPool pool(*backend, kLayout, /*layers=*/3, /*page_count=*/5);
  const kernels::KvView view = pool.view();
  EXPECT_EQ(view.slabs.size(), 3);
  EXPECT_EQ(view.page_count, 5);
  EXPECT_EQ(view.layout.record_bytes(), 48 + 16);
  EXPECT_EQ(KvPool::PageBytes(kLayout, 3), 3 * 64 * 64);
  for (std::byte* slab : view.slabs) EXPECT_EQ(reinterpret_cast<uintptr_t>(slab) % 64, 0);
}

TEST(KvPoolTest, ALeasedPageHoldsNothingOfItsLastOwnerInAnyLayer) {
  const auto backend = kernels::MakeReferenceBackend({});
  KvPool pool(*backend, kLayout, /*layers=*/2, /*page_count=*/3);
  PageLedger ledger(3, [&](int32_t page) { pool.ZeroPage(page); });
  const int64_t page_bytes = kLayout.page_bytes();
  for (std::byte* slab : pool.view().slabs) std::memset(slab, 0xff, 3 * page_bytes);
  PageLease lease = ledger.Open();
  ASSERT_TRUE(lease.Grow(1));
  const int32_t page = lease.pages()[0];
  for (std::byte* slab : pool.view().slabs) {
    for (int64_t i = 0; i < 3 * page_bytes; ++i) {
      ASSERT_EQ(slab[i] == std::byte{0}, i / page_bytes == page) << "byte " << i;
    }
  }
}

}  // namespace
}  // namespace epic::worker
