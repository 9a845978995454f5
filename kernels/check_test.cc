#include "kernels/check.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace epic::kernels {
namespace {

TEST(KernelCheck, PassesInSilenceAndEvaluatesOnce) {
  int evaluated = 0;
  KERNEL_CHECK(++evaluated == 1);
  KERNEL_CHECK_LE(++evaluated, 2);
  KERNEL_CHECK(true, "%d", ++evaluated);
  EXPECT_EQ(evaluated, 2);
}

TEST(KernelCheckDeathTest, NamesFileLineConditionAndValues) {
  const int64_t page = 7;
  EXPECT_DEATH(KERNEL_CHECK(page < 3), "kernels/check_test.cc:[0-9]+: check failed: page < 3");
  EXPECT_DEATH(KERNEL_CHECK(page < 3, "page %ld", page), "page < 3 \\(page 7\\)");
  EXPECT_DEATH(KERNEL_CHECK_LT(page, 3), "page < 3 \\(7 against 3\\)");
}

}  // namespace
}  // namespace epic::kernels
