#include "coordinator/setup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/sim_loop.h"
#include "base/sim_storage.h"

namespace epic::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(SetupTest, AModelIsServedUnderTheNameOfItsFolderUnlessNamesAreGiven) {
  CoordinatorOptions options;
  for (const char* folder : {"models/tiny-r1", "models/tiny-r1/", "./models//tiny-r1"}) {
    options.model = folder;
    EXPECT_THAT(ServedNames(options), ElementsAre("tiny-r1"));
  }
  options.served_model_names = {"a", "b"};
  EXPECT_THAT(ServedNames(options), ElementsAre("a", "b"));
}

TEST(SetupTest, AnIpv6AddressIsBracketed) {
  EXPECT_EQ(AddressOf("127.0.0.1", 80), "127.0.0.1:80");
  EXPECT_EQ(AddressOf("::1", 80), "[::1]:80");
}

TEST(SetupTest, LivenessIsStretchedOnlyByANumberThatMakesSense) {
  const LivenessLimits plain;
  EXPECT_EQ(ScaledLimits("10").silence, plain.silence * 10);
  EXPECT_EQ(ScaledLimits("10").period, plain.period);
  for (const char* given : {static_cast<const char*>(nullptr), "", "x", "0.5", "nan", "1001"}) {
    EXPECT_EQ(ScaledLimits(given).silence, plain.silence);
  }
}

TEST(SetupTest, OtherMachinesNeedATokenAndAWordForIt) {
  CoordinatorOptions options;
  EXPECT_FALSE(ReadToken(options).value().has_value()) << "on loopback none is needed";
  options.control = "0.0.0.0:50061";
  EXPECT_THAT(ReadToken(options).status().message(), HasSubstr("--join-token-file is needed"));
  options.join_token_file = "/no/such/file";
  EXPECT_FALSE(ReadToken(options).ok());
}

TEST(SetupTest, TheTermIsOfTheFolderIfThereIsOne) {
  SimStorage storage(1);
  CoordinatorOptions options;
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  EXPECT_EQ(*TermOf(options, NoStorage(), now), 1'700'000'000'000'000u);
  options.state_dir = "state";
  EXPECT_EQ(*TermOf(options, storage, now), 1u);
  EXPECT_EQ(*TermOf(options, storage, now), 2u);
  storage.SetCapacity(0);
  EXPECT_THAT(TermOf(options, storage, now).status().message(), HasSubstr("--state-dir: "));
}

TEST(SetupTest, ASecretIsAllRandom) {
  SeededRandom random(1);
  const std::string first = NewSecret(random);
  EXPECT_EQ(first.size(), 32u);
  EXPECT_NE(first, NewSecret(random));
}

}  // namespace
}  // namespace epic::coordinator
