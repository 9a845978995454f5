#include "base/storage.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/sim_storage.h"

namespace epic {
namespace {

class RealStorageTest : public testing::Test {
 protected:
  RealStorageTest() { std::filesystem::create_directory(folder_); }
  ~RealStorageTest() override { std::filesystem::remove_all(folder_); }
  std::string Path(const std::string& name) const { return folder_ / name; }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("storage-" + std::to_string(getpid()));
};

TEST_F(RealStorageTest, AppendsBehindWhatIsThere) {
  for (const char* part : {"one ", "two"}) {
    auto file = *RealStorage().OpenToAppend(Path("a"));
    EXPECT_TRUE(file->Append(part).ok());
    EXPECT_TRUE(file->Sync().ok());
  }
  EXPECT_EQ(*RealStorage().Read(Path("a"), 0), "one two");
  EXPECT_EQ(*RealStorage().Read(Path("a"), 4), "two");
  EXPECT_EQ(*RealStorage().Read(Path("a"), 99), "");
  EXPECT_EQ((*RealStorage().OpenToAppend(Path("a")))->size(), 7u);
}

TEST_F(RealStorageTest, ReplacesAFileAndLeavesNothingBehind) {
  std::ofstream(Path("a.new")) << "left by one that died";
  EXPECT_TRUE(ReplaceFile(RealStorage(), Path("a"), "1").ok());
  EXPECT_TRUE(ReplaceFile(RealStorage(), Path("a"), "2").ok());
  EXPECT_EQ(*RealStorage().Read(Path("a"), 0), "2");
  EXPECT_FALSE(std::filesystem::exists(Path("a.new")));
}

TEST_F(RealStorageTest, ErrorsNameTheFile) {
  const absl::Status missing = RealStorage().Read(Path("a"), 0).status();
  EXPECT_TRUE(absl::IsNotFound(missing));
  EXPECT_NE(missing.message().find(Path("a")), std::string::npos);
  EXPECT_TRUE(absl::IsNotFound(RealStorage().OpenToAppend(Path("no/such")).status()));
  EXPECT_TRUE(RealStorage().Remove(Path("a")).ok());
  auto full = *RealStorage().OpenToAppend("/dev/full");
  EXPECT_EQ(full->size(), 0u);
  EXPECT_TRUE(absl::IsResourceExhausted(full->Append("x")));
}

TEST(NoStorageTest, RefusesAllAndNamesTheFile) {
  const absl::Status refusal = NoStorage().OpenToAppend("events").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refusal));
  EXPECT_NE(refusal.message().find("events"), std::string::npos);
}

TEST(SimStorageTest, ALossOfPowerTearsWhatWasNotSynced) {
  bool torn = false, whole = false, gone = false;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SimStorage storage(seed);
    auto file = *storage.OpenToAppend("a");
    ASSERT_TRUE(file->Append("synced ").ok());
    ASSERT_TRUE(file->Sync().ok());
    ASSERT_TRUE(file->Append("not yet").ok());
    storage.Restart();
    EXPECT_FALSE(file->Append("x").ok()) << "a file of the life before";
    const auto read = storage.Read("a", 0);
    gone = gone || !read.ok();
    if (!read.ok()) continue;
    EXPECT_EQ(read->substr(0, 7), "synced ");
    EXPECT_EQ(*read, std::string("synced not yet").substr(0, read->size()));
    torn = torn || (read->size() > 7 && read->size() < 14);
    whole = whole || read->size() == 14;
  }
  EXPECT_TRUE(torn && whole && gone);
}

TEST(SimStorageTest, AFullDiskTakesAPart) {
  SimStorage storage(1);
  storage.SetCapacity(4);
  auto file = *storage.OpenToAppend("a");
  EXPECT_TRUE(absl::IsResourceExhausted(file->Append("123456")));
  EXPECT_EQ(file->size(), 4u);
}

TEST(ReplaceFileTest, WheneverThePowerGoesTheFileIsTheOldOneOrTheNewOne) {
  bool interrupted = false, old_kept = false;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SimStorage storage(seed);
    ASSERT_TRUE(ReplaceFile(storage, "a", "old").ok());
    storage.LosePowerAt(static_cast<int>(seed % 7));
    const bool done = ReplaceFile(storage, "a", "newer").ok();
    storage.Restart();
    const std::string read = *storage.Read("a", 0);
    EXPECT_TRUE(read == "newer" || (!done && read == "old")) << read << " with seed " << seed;
    interrupted = interrupted || !done;
    old_kept = old_kept || read == "old";
    EXPECT_TRUE(ReplaceFile(storage, "a", "newest").ok()) << "after a restart";
    EXPECT_EQ(*storage.Read("a", 0), "newest");
  }
  EXPECT_TRUE(interrupted && old_kept);
}

TEST(ReplaceFileTest, AFullDiskLeavesTheOldFile) {
  SimStorage storage(1);
  ASSERT_TRUE(ReplaceFile(storage, "a", "old").ok());
  storage.SetCapacity(5);
  EXPECT_TRUE(absl::IsResourceExhausted(ReplaceFile(storage, "a", "newer")));
  EXPECT_EQ(*storage.Read("a", 0), "old");
  storage.SetCapacity(100);
  EXPECT_TRUE(ReplaceFile(storage, "a", "newer").ok());
}

}  // namespace
}  // namespace epic
