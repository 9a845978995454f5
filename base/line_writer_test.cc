#include "base/line_writer.h"

#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "base/sim_storage.h"

namespace epic {
namespace {

TEST(LineWriterTest, WritesLinesInOrderAndTheLastOnesAtItsEnd) {
  SimStorage storage(1);
  {
    auto writer = *LineWriter::Open(storage, RealThreads(), "log");
    writer->Append("one");
    writer->Append("two");
    writer->Flush();
    EXPECT_EQ(*storage.Read("log", 0), "one\ntwo\n");
    writer->Append("three");
  }
  EXPECT_EQ(*storage.Read("log", 0), "one\ntwo\nthree\n");
}

TEST(LineWriterTest, ATornTailOfAnEarlierLifeIsNotContinued) {
  SimStorage storage(1);
  ASSERT_TRUE((*storage.OpenToAppend("log"))->Append("one\ntw").ok());
  LineWriter::Open(storage, RealThreads(), "log").value()->Append("three");
  EXPECT_EQ(*storage.Read("log", 0), "one\ntw\nthree\n");
}

TEST(LineWriterTest, AFullDiskCostsLinesThatAreCountedAndTearsNoOther) {
  SimStorage storage(1);
  storage.SetCapacity(6);
  auto writer = *LineWriter::Open(storage, RealThreads(), "log");
  for (const char* line : {"one", "two", "three"}) writer->Append(line);
  writer->Flush();
  EXPECT_EQ(writer->lost(), 2);
  storage.SetCapacity(100);
  writer->Append("four");
  writer->Flush();
  EXPECT_EQ(*storage.Read("log", 0), "one\ntw\nfour\n");
  EXPECT_EQ(writer->lost(), 2);
}

TEST(LineWriterTest, AFileThatCannotBeWrittenIsAnError) {
  EXPECT_FALSE(LineWriter::Open(NoStorage(), RealThreads(), "log").ok());
}

// A disk that takes nothing until it is told to.
class HungStorage : public SimStorage {
 public:
  HungStorage() : SimStorage(1) {}
  absl::StatusOr<std::unique_ptr<AppendFile>> OpenToAppend(const std::string& path) override {
    return std::make_unique<File>(*this, *SimStorage::OpenToAppend(path));
  }
  absl::Notification go_on;

 private:
  class File : public AppendFile {
   public:
    File(HungStorage& storage, std::unique_ptr<AppendFile> file)
        : storage_(storage), file_(std::move(file)) {}
    absl::Status Append(std::string_view bytes) override {
      storage_.go_on.WaitForNotification();
      return file_->Append(bytes);
    }
    absl::Status Sync() override { return file_->Sync(); }
    uint64_t size() const override { return file_->size(); }

   private:
    HungStorage& storage_;
    const std::unique_ptr<AppendFile> file_;
  };
};

TEST(LineWriterTest, ADiskThatHangsDelaysNobodyAndTheQueueIsBounded) {
  HungStorage storage;
  auto writer = *LineWriter::Open(storage, RealThreads(), "log");
  constexpr int kMore = 10;
  // One more may be in the writer's hands.
  const auto lines = static_cast<int>(LineWriter::kQueuedMax) + 1 + kMore;
  for (int i = 0; i < lines; ++i) writer->Append("line");
  EXPECT_GE(writer->lost(), kMore);
  EXPECT_LE(writer->lost(), kMore + 1);
  const auto kept = static_cast<uint64_t>(lines - writer->lost());
  storage.go_on.Notify();
  writer->Flush();
  EXPECT_EQ(storage.Read("log", 0)->size(), kept * 5);
}

}  // namespace
}  // namespace epic
