#include "coordinator/term.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/sim_storage.h"

namespace epic::coordinator {
namespace {

TEST(TermTest, ALaterLifeWithoutAFolderHasAHigherOne) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  EXPECT_GT(TermOfClock(now + absl::Milliseconds(1)), TermOfClock(now));
}

TEST(TermTest, AscendsOverRestarts) {
  const auto folder = std::filesystem::temp_directory_path() / ("term-" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  for (uint64_t life = 1; life <= 3; ++life) EXPECT_EQ(*NextTerm(RealStorage(), folder), life);
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(absl::IsNotFound(NextTerm(RealStorage(), folder).status())) << "no folder";
}

// A life may crash at any operation, and the power may go: whoever was given a term keeps it alone.
TEST(TermTest, NoTermIsGivenTwiceWheneverThePowerGoes) {
  int interrupted = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SimStorage storage(seed);
    uint64_t highest = 0;
    for (int life = 0; life < 10; ++life) {
      // Nine operations are more than a life makes: some are not interrupted.
      storage.LosePowerAt(static_cast<int>((seed + static_cast<uint64_t>(life) * 7) % 9));
      const absl::StatusOr<uint64_t> term = NextTerm(storage, "state");
      if (term.ok()) {
        EXPECT_GT(*term, highest) << "seed " << seed << ", life " << life;
        highest = *term;
      } else {
        ++interrupted;
      }
      storage.Restart();
    }
    EXPECT_GT(*NextTerm(storage, "state"), highest);
  }
  EXPECT_GT(interrupted, 500);
}

TEST(TermTest, AFullDiskIsAnErrorAndTheNextLifeAscends) {
  SimStorage storage(1);
  EXPECT_EQ(*NextTerm(storage, "state"), 1u);
  storage.SetCapacity(3);
  EXPECT_TRUE(absl::IsResourceExhausted(NextTerm(storage, "state").status()));
  storage.SetCapacity(100);
  EXPECT_EQ(*NextTerm(storage, "state"), 2u);
}

TEST(TermTest, AFileThatHoldsNoTermIsNotTakenForTheFirstLife) {
  for (const char* text : {"", "x", "-1", "0", "12 monkeys", "18446744073709551615"}) {
    SimStorage storage(1);
    ASSERT_TRUE(ReplaceFile(storage, "state/TERM", text).ok());
    const absl::Status status = NextTerm(storage, "state").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << text;
    EXPECT_NE(status.message().find("state/TERM"), std::string::npos);
  }
}

}  // namespace
}  // namespace epic::coordinator
