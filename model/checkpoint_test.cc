#include "model/checkpoint.h"

#include <sys/stat.h>

#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/testing/random.h"
#include "model/testing/tiny_checkpoint.h"

namespace epic::model {
namespace {

using testing::HasSubstr;

std::span<const std::byte> Bytes(const std::string& file) {
  return {reinterpret_cast<const std::byte*>(file.data()), file.size()};
}

std::string ErrorOf(const std::string& file) {
  return std::string(ParseSafetensors(Bytes(file), "x.safetensors").status().message());
}

std::string HeaderError(std::string_view header, int64_t data_bytes) {
  return ErrorOf(SafetensorsFile(header, data_bytes));
}

TestTensors TwoTensors() {
  return {{"a", {.dtype = "F32", .shape = {2, 1}, .bytes = "12345678"}},
          {"b", {.dtype = "BF16", .shape = {3}, .bytes = "abcdef"}}};
}

TEST(SafetensorsTest, FindsTensorsInTheFile) {
  const std::string file = SafetensorsFile(TwoTensors());
  const auto header = ParseSafetensors(Bytes(file), "x");
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->entries.size(), 2);
  EXPECT_EQ(header->entries[1].name, "b");
  EXPECT_EQ(header->entries[1].dtype, "BF16");
  EXPECT_EQ(file.substr(header->entries[1].begin, 6), "abcdef");
}

TEST(SafetensorsTest, TakesScalarsEmptyTensorsAndMetadata) {
  const std::string file =
      SafetensorsFile(R"({"__metadata__": {"format": "pt"},)"
                      R"( "s": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},)"
                      R"( "e": {"dtype": "I64", "shape": [3, 0], "data_offsets": [4, 4]}}  )",
                      4);
  const auto header = ParseSafetensors(Bytes(file), "x");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->entries.size(), 2);
}

TEST(SafetensorsTest, RefusesAFileThatIsTooShortOrTruncated) {
  EXPECT_THAT(ErrorOf("abc"), HasSubstr("has 3 bytes"));
  const std::string file = SafetensorsFile(TwoTensors());
  EXPECT_THAT(ErrorOf(file.substr(0, 20)), HasSubstr("truncated"));
  EXPECT_THAT(ErrorOf(file.substr(0, file.size() - 1)),
              HasSubstr("tensor b: data_offsets are [8, 14]; they must ascend within the 13"));
}

TEST(SafetensorsTest, RefusesAHugeHeaderBeforeReadingIt) {
  std::string file = SafetensorsFile("{}", 0);
  const uint64_t huge = ~uint64_t{0} - 4;
  std::memcpy(file.data(), &huge, 8);
  EXPECT_THAT(ErrorOf(file), HasSubstr("the limit is 100000000"));
}

TEST(SafetensorsTest, RefusesOverlapsHolesAndHiddenPayload) {
  const char* pair = R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},)"
                     R"( "b": {"dtype": "U8", "shape": [4], "data_offsets": [%d, %d]}})";
  const auto error = [&](int begin, int end, int data_bytes) {
    char header[300];
    std::snprintf(header, sizeof(header), pair, begin, end);
    return HeaderError(header, data_bytes);
  };
  EXPECT_EQ(error(4, 8, 8), "");
  EXPECT_THAT(error(2, 6, 6), HasSubstr("they overlap"));
  EXPECT_THAT(error(5, 9, 9), HasSubstr("there is a hole"));
  EXPECT_THAT(error(4, 8, 12), HasSubstr("end at byte 8 of the data, which has 12"));
  EXPECT_THAT(error(8, 4, 8), HasSubstr("must ascend"));
}

TEST(SafetensorsTest, RefusesShapesThatDoNotFitTheirBytes) {
  const auto error = [](const std::string& dtype, const std::string& shape) {
    return HeaderError(absl::StrCat(R"({"a": {"dtype": ")", dtype, R"(", "shape": )", shape,
                                    R"(, "data_offsets": [0, 8]}})"),
                       8);
  };
  EXPECT_EQ(error("F32", "[2]"), "");
  EXPECT_THAT(error("F32", "[3]"), HasSubstr("F32 [3] takes 12"));
  EXPECT_THAT(error("F32", "[4294967296, 4294967296]"), HasSubstr("overflows"));
  EXPECT_THAT(error("F32", "[-2]"), HasSubstr("shape holds -2"));
  EXPECT_THAT(error("F32", "[2.0]"), HasSubstr("shape holds 2.0"));
  EXPECT_THAT(error("F32", "[9007199254740994]"), HasSubstr("0 .. 2^53"));
  EXPECT_THAT(error("F32", "[1,1,1,1,1,1,1,1,2]"), HasSubstr("the limit is 8"));
  EXPECT_THAT(error("F32", "2"), HasSubstr("shape is not a list"));
  EXPECT_THAT(error("Q7", "[2]"), HasSubstr("dtype \"Q7\" is unknown"));
}

TEST(SafetensorsTest, RefusesHeadersThatAreNoTableOfTensors) {
  EXPECT_THAT(HeaderError("[]", 0), HasSubstr("does not start with {"));
  EXPECT_THAT(HeaderError("{\"a\": 3}", 0), HasSubstr("tensor a must be an object"));
  EXPECT_THAT(HeaderError("{\"__metadata__\": {\"x\": 1}}", 0), HasSubstr("__metadata__.x"));
  EXPECT_THAT(HeaderError("{\"a\": {}, \"a\": {}}", 0), HasSubstr("key \"a\" repeats"));
  EXPECT_THAT(HeaderError("{\"\xc3\": {}}", 0), HasSubstr("is not JSON"));
  EXPECT_THAT(HeaderError(absl::StrCat("{\"a\": ", std::string(1000000, '['), "}"), 0),
              HasSubstr("nests deeper than 32"));
  EXPECT_THAT(HeaderError(absl::StrCat("{\"", std::string(2000, 'n'), "\": {}}"), 0),
              HasSubstr("name has 2000 bytes"));
}

TEST(SafetensorsTest, EveryMutationIsAStatusOrTilesTheFile) {
  const std::string file = SafetensorsFile(TwoTensors());
  kernels::Random random(3);
  for (int round = 0; round < 20000; ++round) {
    std::string mutated = file;
    for (int i = random.Integer(1, 4); i > 0 && !mutated.empty(); --i) {
      const int at = random.Integer(0, static_cast<int>(mutated.size()) - 1);
      switch (random.Integer(0, 3)) {
        case 0:
          mutated[at] = static_cast<char>(random.Next());
          break;
        case 1:
          mutated.erase(at, 1);
          break;
        case 2:
          mutated.insert(at, 1, "0123456789[]{},:\""[random.Integer(0, 16)]);
          break;
        default:
          mutated.resize(at + 1);
      }
    }
    const auto header = ParseSafetensors(Bytes(mutated), "x");
    if (!header.ok()) continue;
    int64_t at = header->data_begin;
    for (const SafetensorsEntry& entry : header->entries) {
      ASSERT_EQ(entry.begin, at);
      at = entry.end;
    }
    ASSERT_EQ(at, static_cast<int64_t>(mutated.size()));
  }
}

std::string OpenError(const std::string& folder) {
  return std::string(Checkpoint::Open(folder).status().message());
}

std::string FolderWithIndex(const std::string& index) {
  const std::string folder = EmptyFolder();
  WriteFile(folder + "/config.json", "{}");
  WriteFile(folder + "/model.safetensors.index.json", index);
  TestTensors first = TwoTensors(), second = TwoTensors();
  first.erase("b");
  second.erase("a");
  WriteFile(folder + "/one.safetensors", SafetensorsFile(first));
  WriteFile(folder + "/two.safetensors", SafetensorsFile(second));
  return folder;
}

TEST(CheckpointTest, OpensSingleAndShardedFolders) {
  const auto single = Checkpoint::Open(WriteCheckpoint({}, TwoTensors()));
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_EQ((*single)->Find("a")->ToString(), "F32 [2, 1]");
  EXPECT_EQ((*single)->Find("c"), nullptr);
  EXPECT_EQ((*single)->tensor_bytes(), 14);
  const auto sharded = Checkpoint::Open(FolderWithIndex(
      R"({"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})"));
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  EXPECT_EQ(std::memcmp((*sharded)->Find("b")->bytes.data(), "abcdef", 6), 0);
}

TEST(CheckpointTest, ReleasedTensorsCanBeReadAgain) {
  const auto checkpoint = Checkpoint::Open(WriteCheckpoint({}, TwoTensors()));
  ASSERT_TRUE(checkpoint.ok());
  const CheckpointTensor* a = (*checkpoint)->Find("a");
  Checkpoint::Release(a->bytes.data(), static_cast<int64_t>(a->bytes.size()));
  EXPECT_EQ(std::memcmp(a->bytes.data(), "12345678", 8), 0);
}

TEST(CheckpointTest, TheIndexWinsOverWhatAShardHolds) {
  const auto checkpoint =
      Checkpoint::Open(FolderWithIndex(R"({"weight_map": {"a": "one.safetensors"}})"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Find("b"), nullptr);
}

TEST(CheckpointTest, RefusesIndexesThatPointElsewhere) {
  const auto error = [](const std::string& map) {
    return OpenError(FolderWithIndex(absl::StrCat("{\"weight_map\": ", map, "}")));
  };
  for (const char* name :
       {"../one.safetensors", "/etc/passwd", "a\\\\b", "..", ".", "", "a\\u0000b"}) {
    EXPECT_THAT(error(absl::StrCat(R"({"a": ")", name, "\"}")), HasSubstr("plain file name"))
        << name;
  }
  EXPECT_THAT(error(R"({"a": 3})"), HasSubstr("plain file name"));
  EXPECT_THAT(error(R"({"a": "gone.safetensors"})"), HasSubstr("gone.safetensors"));
  EXPECT_THAT(error(R"({"c": "one.safetensors"})"), HasSubstr("tensor c"));
  EXPECT_THAT(error("[]"), HasSubstr("weight_map must be an object"));
}

TEST(CheckpointTest, RefusesFoldersAndFilesThatAreNone) {
  const std::string folder = EmptyFolder();
  EXPECT_THAT(OpenError(folder), HasSubstr("config.json"));
  WriteFile(folder + "/config.json", "{}");
  EXPECT_THAT(OpenError(folder), HasSubstr("holds neither model.safetensors nor"));
  WriteFile(folder + "/model.safetensors", "");
  EXPECT_THAT(OpenError(folder), HasSubstr("is empty"));
  std::filesystem::remove(folder + "/model.safetensors");
  ASSERT_EQ(mkfifo((folder + "/model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(OpenError(folder), HasSubstr("is not a regular file"));
}

TEST(CheckpointTest, TheFingerprintSeesConfigAndHeaders) {
  const auto print = [](const nlohmann::json& config, const TestTensors& tensors) {
    return (*Checkpoint::Open(WriteCheckpoint(config, tensors)))->fingerprint();
  };
  TestTensors renamed = TwoTensors();
  renamed["c"] = renamed["b"];
  renamed.erase("b");
  EXPECT_EQ(print({}, TwoTensors()), print({}, TwoTensors()));
  EXPECT_NE(print({}, TwoTensors()), print({{"x", 1}}, TwoTensors()));
  EXPECT_NE(print({}, TwoTensors()), print({}, renamed));
  EXPECT_EQ(print({}, TwoTensors()).size(), 16);
}

}  // namespace
}  // namespace epic::model
