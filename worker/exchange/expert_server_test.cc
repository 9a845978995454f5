#include "worker/exchange/expert_server.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/sim_loop.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/testing/toy_experts.h"

namespace epic::worker {
namespace {

using cluster::Bytes;
using cluster::FrameHeader;
using cluster::FrameKind;
using cluster::NackReason;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr ExchangeShape kShape{
    .layer_count = 4, .expert_count = 8, .experts_per_token = 2, .hidden = 4};
constexpr ExchangeLimits kLimits{.tile_rows_max = 4};

// Keeps what is sent.
class SentFrames : public cluster::Transport {
 public:
  struct Sent {
    int peer;
    FrameHeader header;
    std::vector<std::byte> payload;
  };
  void SetHandlers(cluster::TransportHandlers) override {}
  void SetPeers(const cluster::AddressBook&) override {}
  bool up(int) const override { return true; }
  size_t unsent_bytes(int) const override { return 0; }
  bool Send(int peer, FrameHeader header, std::span<const Bytes> parts) override {
    sent.push_back({peer, header, {}});
    for (const Bytes part : parts) {
      sent.back().payload.insert(sent.back().payload.end(), part.begin(), part.end());
    }
    return true;
  }
  void Disconnect(int, const absl::Status&) override {}
  void Poll() override {}

  std::vector<Sent> sent;
};

class ExpertServerTest : public testing::Test {
 protected:
  ExpertServerTest() {
    for (int layer = 1; layer < kShape.layer_count; ++layer) {
      for (int expert = 0; expert < kShape.expert_count; ++expert) experts_.Hold(layer, expert);
    }
    experts_.set_on_compute([this](int layer, std::span<const kernels::ExpertRow> pairs) {
      commits_.push_back(absl::StrCat("layer ", layer, ": ", pairs.size()));
    });
    server_.set_version({3, 9});
  }

  static std::vector<std::byte> Payload(const std::vector<FramePair>& pairs, int rows) {
    std::vector<std::byte> payload;
    WriteDispatchHead(pairs, rows, payload);
    for (int i = 0; i < rows * kShape.hidden; ++i) {
      const auto value = static_cast<uint16_t>(7 * i + rows);
      const auto bytes = std::as_bytes(std::span(&value, 1));
      payload.insert(payload.end(), bytes.begin(), bytes.end());
    }
    return payload;
  }
  void Dispatch(int peer, int layer, bool decode, const std::vector<std::byte>& payload) {
    server_.OnDispatch(peer, true,
                       {.kind = FrameKind::kDispatch,
                        .layer = static_cast<uint16_t>(layer),
                        .attempt = 5,
                        .dispatch = ++dispatch_,
                        .flags = decode ? cluster::kFrameDecode : uint16_t{0}},
                       payload);
  }
  // `rows` rows that all want experts 2 and 5.
  void Rows(int peer, int layer, bool decode, int rows) {
    std::vector<FramePair> pairs;
    for (uint16_t row = 0; row < rows; ++row) pairs.insert(pairs.end(), {{row, 2}, {row, 5}});
    Dispatch(peer, layer, decode, Payload(pairs, rows));
  }
  std::vector<std::string> CommitAll() {
    commits_.clear();
    while (server_.Commit()) {
    }
    return commits_;
  }

  SimLoop loop_;
  SentFrames transport_;
  cluster::PeerNetwork network_{transport_};
  ToyExperts experts_;
  std::vector<std::string> commits_;
  std::vector<std::pair<int, int64_t>> local_done_;
  std::vector<std::pair<int, int32_t>> local_missing_;
  int missing_calls_ = 0;
  uint64_t dispatch_ = 0;
  ExpertServer server_{
      kShape,
      kLimits,
      loop_,
      network_,
      experts_,
      {.on_done = [this](int t, int64_t n) { local_done_.emplace_back(t, n); },
       .on_missing =
           [this](std::span<const ExpertServer::LocalPair> missing) {
             ++missing_calls_;
             for (const auto& [t, pair] : missing) local_missing_.emplace_back(t, pair);
           }}};
};

TEST_F(ExpertServerTest, AnswersRowByRowInTheOrderOfTheDispatch) {
  const std::vector<FramePair> pairs = {{0, 1}, {0, 7}, {1, 1}, {1, 3}};
  const auto payload = Payload(pairs, 2);
  Dispatch(6, 2, false, payload);
  EXPECT_TRUE(server_.busy());
  EXPECT_THAT(CommitAll(), ElementsAre("layer 2: 4"));
  ASSERT_EQ(transport_.sent.size(), 1);
  const auto& [peer, header, answer] = transport_.sent[0];
  EXPECT_EQ(peer, 6);
  EXPECT_EQ(header.kind, FrameKind::kCombine);
  EXPECT_EQ(header.layer, 2);
  EXPECT_EQ(header.attempt, 5);
  EXPECT_EQ(header.dispatch, 1);
  EXPECT_EQ(header.map_number, 9);
  std::vector<uint16_t> rows(2 * kShape.hidden), answers(4 * kShape.hidden), expected(answers);
  std::memcpy(rows.data(), payload.data() + payload.size() - 16, 16);
  ASSERT_EQ(answer.size(), 2 * answers.size());
  std::memcpy(answers.data(), answer.data(), answer.size());
  for (size_t i = 0; i < pairs.size(); ++i) {
    ToyExperts::Answer(2, pairs[i].expert, std::span(rows).subspan(4 * pairs[i].row, 4),
                       std::span(expected).subspan(4 * i, 4));
  }
  EXPECT_EQ(answers, expected);
}

TEST_F(ExpertServerTest, CommitsTheLayerOfTheOldestDecodeRowsFirst) {
  Rows(1, 3, false, 2);
  Rows(2, 2, true, 1);
  Rows(3, 3, true, 1);
  Rows(4, 2, false, 1);
  Rows(5, 2, true, 1);
  // Layer 2's prompt row does not hold up its decode rows.
  EXPECT_THAT(CommitAll(), ElementsAre("layer 2: 4", "layer 3: 2", "layer 3: 4", "layer 2: 2"));
  EXPECT_EQ(transport_.sent.size(), 5);
}

TEST_F(ExpertServerTest, OldPromptRowsCountAsDecodeRows) {
  Rows(1, 3, false, 2);
  loop_.Advance(absl::Milliseconds(51));
  Rows(2, 2, true, 1);
  EXPECT_THAT(CommitAll(), ElementsAre("layer 3: 4", "layer 2: 2"));
}

TEST_F(ExpertServerTest, ACommitIsOneTileAtMost) {
  Rows(1, 2, true, 2);
  Rows(2, 2, true, 3);
  Rows(3, 2, true, 2);
  // Rank 3's frame waits for its turn behind rank 2's.
  EXPECT_THAT(CommitAll(), ElementsAre("layer 2: 4", "layer 2: 6", "layer 2: 4"));
}

TEST_F(ExpertServerTest, RefusesWhatExceedsTheCreditsAndTakesMoreOnceItHasAnswered) {
  for (int i = 0; i < 3; ++i) Rows(1, 2, true, 1);
  ASSERT_EQ(transport_.sent.size(), 1);
  EXPECT_EQ(transport_.sent[0].header.kind, FrameKind::kNack);
  EXPECT_EQ(transport_.sent[0].header.detail, static_cast<int>(NackReason::kNoCredit));
  EXPECT_EQ(transport_.sent[0].header.dispatch, 3);
  CommitAll();
  Rows(1, 2, true, 1);
  EXPECT_EQ(server_.counters().refused_no_credit, 1);
}

TEST_F(ExpertServerTest, NamesTheExpertsThatAreNotHere) {
  experts_.Drop(2, 5);
  experts_.Drop(2, 1);
  Dispatch(1, 2, true, Payload({{0, 1}, {0, 2}, {1, 5}, {2, 5}}, 3));
  Rows(2, 3, true, 1);
  EXPECT_THAT(CommitAll(), ElementsAre("layer 3: 2"));
  const auto& refusal = transport_.sent[0];
  EXPECT_EQ(refusal.header.detail, static_cast<int>(NackReason::kNotHere));
  EXPECT_EQ(refusal.header.term, 3);
  std::vector<uint16_t> named(refusal.payload.size() / 2);
  std::memcpy(named.data(), refusal.payload.data(), refusal.payload.size());
  EXPECT_THAT(named, ElementsAre(1, 5));
}

TEST_F(ExpertServerTest, RefusesRanksOutOfTheWorldAndForgetsThoseThatAreGone) {
  server_.OnDispatch(1, false, {.kind = FrameKind::kDispatch}, Payload({{0, 1}}, 1));
  EXPECT_EQ(transport_.sent[0].header.detail, static_cast<int>(NackReason::kRevoked));
  Rows(2, 2, true, 1);
  Rows(3, 2, true, 1);
  server_.Drop(2);
  EXPECT_THAT(CommitAll(), ElementsAre("layer 2: 2"));
  EXPECT_EQ(transport_.sent.back().peer, 3);
}

TEST_F(ExpertServerTest, RefusesRowsOfWeightsThatItDoesNotKnow) {
  const auto payload = Payload({{0, 1}, {0, 2}}, 1);
  for (const int weights : {1, 255}) {
    const auto flags = static_cast<uint16_t>(weights << cluster::kFrameWeightsShift);
    server_.OnDispatch(
        1, true, {.kind = FrameKind::kDispatch, .layer = 2, .dispatch = 7, .flags = flags},
        payload);
    const FrameHeader& refusal = transport_.sent.back().header;
    EXPECT_EQ(refusal.kind, FrameKind::kNack);
    EXPECT_EQ(refusal.detail, static_cast<int>(NackReason::kNotHere));
    EXPECT_EQ(refusal.dispatch, 7);
    EXPECT_EQ(refusal.flags, flags);
  }
  EXPECT_EQ(server_.counters().refused_not_here, 2);
  EXPECT_THAT(CommitAll(), IsEmpty());
}

TEST_F(ExpertServerTest, RefusesPayloadsThatDoNotFitTogether) {
  const auto good = Payload({{0, 1}, {0, 2}, {1, 5}}, 2);
  const auto refused = [&](const std::vector<std::byte>& payload, int layer = 2) {
    const int64_t before = server_.counters().refused_bad_frame;
    Dispatch(1, layer, true, payload);
    EXPECT_EQ(server_.counters().refused_bad_frame, before + 1);
    EXPECT_FALSE(server_.busy());
  };
  refused(good, kShape.layer_count);
  refused(good, UINT16_MAX);
  for (size_t size = 0; size < good.size(); ++size) {
    refused({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)});
  }
  auto longer = good;
  longer.push_back({});
  refused(longer);
  longer.resize(size_t{1} << 20);
  refused(longer);
  const auto with = [&](size_t offset, uint32_t value) {
    auto changed = good;
    std::memcpy(changed.data() + offset, &value, sizeof value);
    return changed;
  };
  for (const uint32_t count : {0u, 1u, 3u, 5u, 1u << 30, UINT32_MAX}) {
    refused(with(0, count));
    if (count != 3) refused(with(4, count));
  }
  refused(Payload({{0, 1}, {0, 8}}, 1));                          // no such expert
  refused(Payload({{0, 2}, {0, 1}}, 1));                          // experts out of order
  refused(Payload({{0, 1}, {0, 1}}, 1));                          // an expert twice
  refused(Payload({{0, 1}, {2, 1}}, 2));                          // no such row
  refused(Payload({{1, 1}, {0, 1}}, 2));                          // rows out of order
  refused(Payload({{0, 1}, {0, 2}}, 2));                          // a row that nobody wants
  refused(Payload({{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}}, 5));  // more than a tile
  EXPECT_THAT(commits_, IsEmpty());
}

// Own rows, with room for their answers.
struct OwnRows {
  explicit OwnRows(const std::vector<int32_t>& ids) : experts(ids), out(ids.size() * 4) {
    for (size_t i = 0; i < ids.size() / 2 * 4; ++i) rows.push_back(static_cast<uint16_t>(i));
  }
  model::ExpertDispatch dispatch(int layer, bool decode) {
    const auto count = static_cast<int64_t>(experts.size());
    return {.layer = layer,
            .rows = {kernels::DType::kBF16, count / 2, 4, rows.data()},
            .experts = {kernels::DType::kI32, count / 2, 2, experts.data()},
            .out = {kernels::DType::kBF16, count, 4, out.data()},
            .decode = decode};
  }
  std::vector<uint16_t> Expected(int layer, const std::vector<int32_t>& pairs) const {
    std::vector<uint16_t> expected(out.size());
    for (const int32_t pair : pairs) {
      ToyExperts::Answer(layer, experts[pair], std::span(rows).subspan(pair / 2 * 4, 4),
                         std::span(expected).subspan(pair * 4, 4));
    }
    return expected;
  }
  std::vector<int32_t> experts;
  std::vector<uint16_t> rows, out;
};

TEST_F(ExpertServerTest, ComputesOwnRowsWithThoseOfOthers) {
  OwnRows own({0, 3, 1, 2, 4, 5});
  const std::vector<int32_t> pairs = {0, 3, 4};
  server_.AddLocal(1, own.dispatch(2, true), pairs);
  Rows(3, 2, true, 1);
  EXPECT_THAT(CommitAll(), ElementsAre("layer 2: 5"));
  EXPECT_EQ(own.out, own.Expected(2, pairs));
  EXPECT_THAT(local_done_, ElementsAre(std::pair(1, 3)));
  EXPECT_EQ(transport_.sent.size(), 1);
}

TEST_F(ExpertServerTest, CutsManyOwnRowsIntoTiles) {
  std::vector<int32_t> ids, pairs;
  for (int32_t i = 0; i < 18; ++i) {
    ids.push_back(i % 2 == 0 ? 1 : 6);
    pairs.push_back(i);
  }
  OwnRows own(ids);
  server_.AddLocal(0, own.dispatch(3, false), pairs);
  EXPECT_THAT(CommitAll(), ElementsAre("layer 3: 8", "layer 3: 8", "layer 3: 2"));
  EXPECT_EQ(own.out, own.Expected(3, pairs));
}

TEST_F(ExpertServerTest, GivesBackOwnRowsWhoseExpertIsGone) {
  OwnRows own({1, 6, 2, 6});
  server_.AddLocal(0, own.dispatch(3, false), std::vector<int32_t>{0, 1, 2, 3});
  experts_.Drop(3, 6);
  EXPECT_THAT(CommitAll(), ElementsAre("layer 3: 2"));
  EXPECT_THAT(local_missing_, ElementsAre(std::pair(0, 1), std::pair(0, 3)));
  EXPECT_EQ(missing_calls_, 1);  // told once a commit, for each telling routes all that waits
  EXPECT_EQ(own.out, own.Expected(3, {0, 2}));
  server_.AddLocal(0, own.dispatch(3, false), std::vector<int32_t>{0});
  server_.DropLocal(0);
  EXPECT_FALSE(server_.Commit());
}

}  // namespace
}  // namespace epic::worker
