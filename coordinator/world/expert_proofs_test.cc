#include "coordinator/world/expert_proofs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

TEST(ExpertProofs, TheFirstLoaderIsRight) {
  ExpertProofs proofs;
  EXPECT_EQ(proofs.Find(1, 2), 0u);
  EXPECT_TRUE(proofs.Check(5, 1, 2, 0).ok());
  EXPECT_EQ(proofs.Find(1, 2), 0u);
  EXPECT_TRUE(proofs.Check(5, 1, 2, 0xabc).ok());
  EXPECT_TRUE(proofs.Check(6, 1, 2, 0xabc).ok());
  EXPECT_TRUE(proofs.Check(6, 1, 3, 0xdef).ok());
  EXPECT_EQ(proofs.Find(1, 2), 0xabcu);
  const absl::Status other = proofs.Check(7, 1, 2, 0xabd);
  EXPECT_EQ(other.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(other.message()),
              testing::HasSubstr("expert 2 of layer 1 has content hash 0000000000000abd here, "
                                 "0000000000000abc at rank 5, its first loader"));
  EXPECT_EQ(proofs.Find(1, 2), 0xabcu);
}

}  // namespace
}  // namespace epic::coordinator
