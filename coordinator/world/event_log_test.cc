#include "coordinator/world/event_log.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/sim_loop.h"
#include "base/sim_storage.h"
#include "nlohmann/json.hpp"

namespace epic::coordinator {
namespace {

TEST(EventLogTest, EventsAreNumberedAndOldOnesAreDropped) {
  SimLoop clock;
  EventLog log(clock);
  for (size_t i = 0; i < EventLog::kKept + 10; ++i) {
    log.Append(EventKind::kMap, -1, 0, std::to_string(i));
  }
  EXPECT_EQ(log.last(), EventLog::kKept + 10);
  EXPECT_EQ(log.Read(0).size(), EventLog::kKept);
  EXPECT_EQ(log.Read(0, 1).at(0).number, 11u);
  EXPECT_EQ(log.Read(log.last()).at(0).text, std::to_string(EventLog::kKept + 9));
  EXPECT_TRUE(log.Read(log.last() + 1).empty());
}

TEST(EventLogTest, ListenersHearUntilTheyAreRemoved) {
  SimLoop clock;
  EventLog log(clock);
  int heard = 0;
  const auto id = log.AddListener([&] { ++heard; });
  log.Append(EventKind::kJoin, 1, 2, "x");
  log.RemoveListener(id);
  log.Append(EventKind::kJoin, 1, 2, "x");
  EXPECT_EQ(heard, 1);
}

TEST(EventLogTest, TheFileHasOneJsonObjectALine) {
  const auto path = std::filesystem::temp_directory_path() / ("events-" + std::to_string(getpid()));
  SimLoop clock;
  SeededRandom random(1);
  const Env env{clock, clock, random, RealThreads(), RealStorage()};
  {
    EventLog log(clock);
    ASSERT_TRUE(log.OpenFile(env, path).ok());
    log.Append(EventKind::kRevoke, 3, 0xab, "it said \"\xff\n\"");
    log.Append(EventKind::kMap, -1, 0, "2");
    const absl::Status refusal = log.OpenFile(env, "/no/such/folder/x");
    EXPECT_NE(refusal.message().find("--event-log: cannot write /no/such"), std::string::npos);
  }
  std::ifstream file(path);
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const auto first = nlohmann::json::parse(line);
  EXPECT_EQ(first["kind"], "revoke");
  EXPECT_EQ(first["rank"], 3);
  EXPECT_EQ(first["generation"], "00000000000000ab");
  ASSERT_TRUE(std::getline(file, line));
  EXPECT_FALSE(nlohmann::json::parse(line).contains("rank"));
  EXPECT_FALSE(std::getline(file, line));
  std::filesystem::remove(path);
}

TEST(EventLogTest, AFullDiskIsCountedAndHarmsNothing) {
  SimLoop clock;
  SeededRandom random(1);
  SimStorage storage(1);
  storage.SetCapacity(10);
  EventLog log(clock);
  EXPECT_EQ(log.failed_writes(), 0);
  ASSERT_TRUE(log.OpenFile({clock, clock, random, RealThreads(), storage}, "log").ok());
  log.Append(EventKind::kMap, -1, 0, "1");
  log.Append(EventKind::kMap, -1, 0, "2");
  log.FlushFile();
  EXPECT_EQ(log.failed_writes(), 2);
  EXPECT_EQ(log.Read(0).size(), 2u);
  storage.SetCapacity(1000);
  log.Append(EventKind::kMap, -1, 0, "3");
  log.FlushFile();
  const std::string bytes = *storage.Read("log", 0);
  const size_t line = bytes.find('\n') + 1;
  EXPECT_EQ(nlohmann::json::parse(bytes.substr(line))["text"], "3") << "torn, not continued";
}

}  // namespace
}  // namespace epic::coordinator
