#include "worker/service/rank_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/sim_loop.h"
#include "cluster/transport/loopback_transport.h"

namespace epic::worker {
namespace {

class Link : public cluster::ControlLink {
 public:
  void Send(v1::ControlMessage message) override { messages.push_back(std::move(message)); }
  std::vector<v1::ControlMessage> messages;
};

// Loads one expert of ten bytes a turn; expert 13 cannot be loaded.
class FakeSlots : public ExpertSlots {
 public:
  void Order(ExpertOrder order) override {
    order_ = std::move(order);
    left_ = order_->wanted.size();
  }
  bool loading() const override { return order_.has_value(); }
  std::optional<ExpertOutcome> Advance() override {
    if (--left_ > 0) return std::nullopt;
    ExpertOutcome outcome{.order = order_->order, .loaded_bytes = 10, .duration = absl::Seconds(2)};
    for (const auto& [name, proof] : order_->wanted) {
      if (name.expert == 13) outcome.status = absl::DataLossError("expert 13 differs");
      outcome.proofs[name] = proof != 0 ? proof : 100 + static_cast<uint64_t>(name.expert);
    }
    order_.reset();
    return outcome;
  }
  int slots() const override { return 4; }
  int64_t order_bytes() const override { return 10; }
  int64_t order_total_bytes() const override { return 30; }
  bool Holds(int, int) const override { return true; }
  void Compute(int, kernels::Tensor, std::span<const kernels::ExpertRow>,
               kernels::Tensor) override {}

 private:
  std::optional<ExpertOrder> order_;
  size_t left_ = 0;
};

class RankServiceTest : public testing::Test {
 protected:
  RankServiceTest() { service_.Connect(&link_); }

  bool Place(uint64_t order, std::vector<int> experts, std::vector<uint64_t> proofs = {}) {
    v1::ControlMessage message;
    message.mutable_place_experts()->set_order(order);
    v1::LayerExperts& layer = *message.mutable_place_experts()->add_layers();
    layer.set_layer(1);
    layer.mutable_experts()->Assign(experts.begin(), experts.end());
    layer.mutable_hashes()->Assign(proofs.begin(), proofs.end());
    return service_.OnMessage(message);
  }
  v1::RankReport Report() const {
    v1::RankReport report;
    service_.FillReport(report);
    return report;
  }

  SimLoop loop_;
  cluster::LoopbackNetwork network_;
  cluster::LoopbackTransport transport_{network_, 3, 9};
  cluster::PeerNetwork peers_{transport_};
  FakeSlots slots_;
  MessageExchange exchange_{
      {.layer_count = 2, .expert_count = 16, .experts_per_token = 2, .hidden = 8},
      {},
      loop_,
      peers_,
      slots_};
  RankService service_{loop_, exchange_, &slots_};
  Link link_;
};

TEST_F(RankServiceTest, FillsSlotsAndTellsWhatIsHeldWithProofs) {
  ASSERT_TRUE(Place(7, {2, 3}, {55, 0}));
  ASSERT_TRUE(service_.loading());
  EXPECT_EQ(Report().activity(), v1::RankReport::LOADING);
  service_.set_base_bytes(1000);
  service_.Advance();
  EXPECT_EQ(link_.messages.back().load_progress().loaded_bytes(), 1010);
  EXPECT_EQ(link_.messages.back().load_progress().total_bytes(), 1030);
  service_.Advance();
  EXPECT_FALSE(service_.loading());
  const v1::ExpertsReady& ready = link_.messages.back().experts_ready();
  EXPECT_EQ(ready.order(), 7);
  EXPECT_EQ(ready.load_seconds(), 2);
  ASSERT_EQ(ready.layers_size(), 1);
  EXPECT_EQ(ready.layers(0).layer(), 1);
  EXPECT_THAT(ready.layers(0).experts(), testing::ElementsAre(2, 3));
  EXPECT_THAT(ready.layers(0).hashes(), testing::ElementsAre(55, 103));
}

TEST_F(RankServiceTest, TellsWhyAnOrderFailed) {
  ASSERT_TRUE(Place(8, {13}));
  service_.Advance();
  EXPECT_EQ(link_.messages.back().experts_failed().order(), 8);
  EXPECT_EQ(link_.messages.back().experts_failed().message(), "expert 13 differs");
  v1::ControlMessage message;
  v1::LayerExperts& layer = *message.mutable_place_experts()->add_layers();
  layer.add_experts(2);
  layer.set_weights_id(3);
  EXPECT_TRUE(service_.OnMessage(message));
  EXPECT_EQ(link_.messages.back().experts_failed().message(),
            "weights_id is 3; this world has only 0");
  EXPECT_FALSE(service_.loading());
  RankService without(loop_, exchange_, nullptr);
  without.Connect(&link_);
  message.Clear();
  message.mutable_place_experts()->set_order(9);
  EXPECT_TRUE(without.OnMessage(message));
  EXPECT_EQ(link_.messages.back().experts_failed().message(), "this rank holds no experts");
}

TEST_F(RankServiceTest, TakesNewerMapsAndNoImpossibleOnes) {
  v1::ControlMessage welcome;
  welcome.mutable_welcome()->set_rank(3);
  EXPECT_TRUE(service_.OnMessage(welcome));
  const auto publish = [&](uint64_t number, int host) {
    v1::ControlMessage message;
    v1::PublishMap& map = *message.mutable_publish_map();
    map.set_term(1);
    map.set_number(number);
    v1::MapRank& rank = *map.add_ranks();
    rank.set_rank(3);
    rank.set_experts(true);
    map.add_layers();
    v1::MapLayer& layer = *map.add_layers();
    layer.add_counts(1);
    layer.add_ranks(host);
    EXPECT_TRUE(service_.OnMessage(message));
    return Report().map_number();
  };
  EXPECT_EQ(publish(5, 3), 5);
  EXPECT_EQ(publish(6, 4), 5);  // rank 4 is not of the map
  EXPECT_EQ(publish(4, 3), 5);
  EXPECT_EQ(publish(7, 3), 7);
}

TEST_F(RankServiceTest, TellsOfBrokenLinksAndLeavesOthersMessagesAlone) {
  v1::ControlMessage message;
  message.mutable_revoked()->set_reason("silent for 2 s");
  EXPECT_TRUE(service_.OnMessage(message));
  service_.OnLinkDown({{.rank = 5, .generation = 77}}, absl::UnavailableError("reset"));
  EXPECT_EQ(link_.messages.back().link_down().rank(), 5);
  EXPECT_EQ(link_.messages.back().link_down().generation(), 77);
  EXPECT_EQ(link_.messages.back().link_down().evidence(), "reset");
  v1::ControlMessage start;
  start.mutable_start();
  EXPECT_FALSE(service_.OnMessage(start));
}

TEST_F(RankServiceTest, ALinkThatWasDownIsSaidToBeUpOnce) {
  const cluster::RankEntry peer{{.rank = 4, .generation = 9}};
  service_.OnLinkUp(peer);
  EXPECT_TRUE(link_.messages.empty());
  service_.OnLinkDown(peer, absl::UnavailableError("gone"));
  service_.OnLinkUp(peer);
  service_.OnLinkUp(peer);
  ASSERT_EQ(link_.messages.size(), 2u);
  EXPECT_EQ(link_.messages[1].link_up().rank(), 4);
  EXPECT_EQ(link_.messages[1].link_up().generation(), 9u);
}

}  // namespace
}  // namespace epic::worker
