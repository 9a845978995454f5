#include "coordinator/admission/admission.h"

#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

TEST(AdmissionTest, RefusesBeyondItsLimitsAndRecovers) {
  Admission admission({.requests_max = 2, .tokens_max = 100});
  EXPECT_TRUE(admission.Admit(60).ok());
  EXPECT_EQ(admission.Admit(41).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(admission.Admit(40).ok());
  EXPECT_EQ(admission.Admit(0).code(), absl::StatusCode::kResourceExhausted);
  admission.Release(60);
  EXPECT_TRUE(admission.Admit(60).ok());
}

TEST(AdmissionTest, OneLargeRequestIsTakenAlone) {
  Admission admission({.requests_max = 2, .tokens_max = 100});
  EXPECT_TRUE(admission.Admit(1000).ok());
  EXPECT_FALSE(admission.Admit(1).ok());
}

}  // namespace
}  // namespace epic::coordinator
