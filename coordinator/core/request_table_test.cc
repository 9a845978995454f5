#include "coordinator/core/request_table.h"

#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

Request NewRequest(const std::string& name, int choices = 1) {
  Request request{.id = name, .prompt = {1, 2, 3}, .max_tokens = 7, .choices = choices};
  request.sampling.set_seed(5);
  return request;
}

TEST(RequestTableTest, ARequestEndsWithItsLastSequence) {
  RequestTable table({});
  const uint64_t id = *table.Add(NewRequest("a", 2));
  EXPECT_TRUE(table.request(id)->sequences.empty());
  const std::vector<uint64_t> sequences = table.Begin(id);
  ASSERT_EQ(sequences.size(), 2u);
  EXPECT_EQ(table.sequence(sequences[1])->choice, 1);
  EXPECT_EQ(table.RequestOf(sequences[1]).request.id, "a");
  const auto journal = table.request(id)->journal;
  EXPECT_FALSE(table.EndSequence(sequences[1], v1::FINISH_REASON_STOP, {}).has_value());
  EXPECT_EQ(table.sequence(sequences[1]), nullptr);
  EXPECT_TRUE(journal->sealed(1));
  table.request(id)->timer = 9;
  const auto ended = table.EndSequence(sequences[0], v1::FINISH_REASON_LENGTH, {});
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->timer, 9u);
  EXPECT_EQ(table.request(id), nullptr);
  EXPECT_TRUE(journal->all_sealed());
}

TEST(RequestTableTest, ANameIsOfOneRequestThatRuns) {
  RequestTable table({});
  const uint64_t first = *table.Add(NewRequest("a"));
  EXPECT_EQ(table.Find("a"), first);
  EXPECT_EQ(table.Add(NewRequest("a")).status().code(), absl::StatusCode::kAlreadyExists);
  table.EndBeforeBegin(first, v1::FINISH_REASON_CANCELLED, {});
  EXPECT_EQ(table.Find("a"), std::nullopt);
  EXPECT_NE(*table.Add(NewRequest("a")), first) << "an id is given once";
}

TEST(RequestTableTest, WhatWasAdmittedIsReleasedAtEitherEnd) {
  RequestTable table({.requests_max = 1});
  const uint64_t first = *table.Add(NewRequest("a", 2));
  EXPECT_EQ(table.Add(NewRequest("b")).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(table.Find("b"), std::nullopt);
  for (const uint64_t sequence : std::vector<uint64_t>(table.Begin(first))) {
    table.EndSequence(sequence, v1::FINISH_REASON_STOP, {});
  }
  const uint64_t second = *table.Add(NewRequest("b"));
  const auto journal = table.request(second)->journal;
  table.EndBeforeBegin(second, v1::FINISH_REASON_ERROR, absl::InternalError("x"));
  EXPECT_EQ(journal->Read(0, 0).error, absl::InternalError("x"));
  EXPECT_TRUE(table.Add(NewRequest("c")).ok());
}

TEST(RequestTableTest, JournalsThatGrewAreTakenOnceAlsoWhenTheirRequestHasEnded) {
  RequestTable table({});
  const uint64_t id = *table.Add(NewRequest("a"));
  const auto journal = table.request(id)->journal;
  table.NoteGrowth(id);
  table.NoteGrowth(id);
  EXPECT_EQ(table.TakeGrown(), std::vector{journal});
  EXPECT_TRUE(table.TakeGrown().empty());
  table.EndBeforeBegin(id, v1::FINISH_REASON_CANCELLED, {});
  EXPECT_EQ(table.TakeGrown(), std::vector{journal});
}

}  // namespace
}  // namespace epic::coordinator
