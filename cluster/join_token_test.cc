#include "cluster/join_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>

namespace epic::cluster {
namespace {

using testing::HasSubstr;

JoinFacts Facts() {
  return {.worker_nonce = std::string(16, 'w'),
          .coordinator_nonce = std::string(16, 'c'),
          .term = 5,
          .generation = 9,
          .profile = "p",
          .build_id = "b"};
}

TEST(JoinTokenTest, AProofHoldsForItsTokenSideAndFactsAlone) {
  const JoinToken token("0123456789abcdef"), other("0123456789abcdeF");
  const std::string proof = token.Prove(JoinSide::kWorker, Facts());
  EXPECT_EQ(proof.size(), 32u);
  EXPECT_TRUE(token.Verify(JoinSide::kWorker, Facts(), proof));
  EXPECT_FALSE(other.Verify(JoinSide::kWorker, Facts(), proof));
  EXPECT_FALSE(token.Verify(JoinSide::kCoordinator, Facts(), proof));
  EXPECT_FALSE(token.Verify(JoinSide::kWorker, Facts(), ""));
  EXPECT_FALSE(token.Verify(JoinSide::kWorker, Facts(), proof + "x"));
  for (const auto& change : std::vector<std::function<void(JoinFacts&)>>{
           [](auto& f) { f.worker_nonce[0] = 'x'; }, [](auto& f) { f.coordinator_nonce[0] = 'x'; },
           [](auto& f) { f.term = 6; }, [](auto& f) { f.generation = 10; },
           [](auto& f) { f.profile = "q"; }, [](auto& f) { f.build_id = "c"; },
           [](auto& f) {
             f.profile = "pb";
             f.build_id = "";
           }}) {
    JoinFacts facts = Facts();
    change(facts);
    EXPECT_FALSE(token.Verify(JoinSide::kWorker, facts, proof));
  }
}

TEST(JoinTokenTest, WithoutAFullNonceNothingHolds) {
  const JoinToken token("0123456789abcdef");
  JoinFacts facts = Facts();
  facts.worker_nonce.clear();
  EXPECT_FALSE(token.Verify(JoinSide::kWorker, facts, token.Prove(JoinSide::kWorker, facts)));
}

TEST(JoinTokenTest, APairHasOneKeyInATerm) {
  EXPECT_EQ(PairKey("s", 1, 2, 3), PairKey("s", 1, 3, 2));
  EXPECT_EQ(PairKey("s", 1, 2, 3).size(), 32u);
  EXPECT_NE(PairKey("s", 1, 2, 3), PairKey("s", 2, 2, 3));
  EXPECT_NE(PairKey("s", 1, 2, 3), PairKey("s", 1, 2, 4));
  EXPECT_NE(PairKey("s", 1, 2, 3), PairKey("t", 1, 2, 3));
}

TEST(JoinTokenTest, AFileThatIsShortOrMissingIsRefused) {
  const std::string path =
      std::filesystem::temp_directory_path() / ("token-" + std::to_string(getpid()));
  const auto write = [&](const std::string& text) { std::ofstream(path) << text; };
  write("0123456789abcdef\n");
  const auto token = JoinToken::ReadFile(path);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->Prove(JoinSide::kWorker, Facts()),
            JoinToken("0123456789abcdef").Prove(JoinSide::kWorker, Facts()));
  write("short\n");
  EXPECT_THAT(std::string(JoinToken::ReadFile(path).status().message()), HasSubstr("5 bytes"));
  std::filesystem::remove(path);
  EXPECT_EQ(JoinToken::ReadFile(path).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace epic::cluster
