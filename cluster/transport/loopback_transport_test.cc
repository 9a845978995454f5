#include "cluster/transport/loopback_transport.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using testing::ElementsAre;

struct End {
  explicit End(LoopbackNetwork& network, int rank, uint64_t generation)
      : transport(std::make_unique<LoopbackTransport>(network, rank, generation)) {
    transport->SetHandlers(
        {.on_up = [this](int peer) { events.push_back("up " + std::to_string(peer)); },
         .on_frame =
             [this](int peer, const FrameHeader& header, Bytes payload) {
               EXPECT_EQ(header.source, peer);
               EXPECT_EQ(header.payload_bytes, payload.size());
               events.push_back("frame " + std::to_string(header.dispatch) + " of " +
                                std::to_string(payload.size()));
             },
         .on_down =
             [this](int peer, const absl::Status&) {
               events.push_back("down " + std::to_string(peer));
             }});
  }
  std::vector<std::string> Poll() {
    events.clear();
    transport->Poll();
    return events;
  }

  std::vector<std::string> events;
  std::unique_ptr<LoopbackTransport> transport;
};

RankAddress Entry(int rank, uint64_t generation) {
  return {.rank = rank, .generation = generation};
}

class LoopbackTransportTest : public testing::Test {
 protected:
  LoopbackTransportTest() {
    a_.transport->SetPeers({Entry(1, 11)});
    b_.transport->SetPeers({Entry(0, 10)});
  }

  LoopbackNetwork network_;
  End a_{network_, 0, 10}, b_{network_, 1, 11};
};

TEST_F(LoopbackTransportTest, FramesArriveWholeAndInOrder) {
  EXPECT_FALSE(a_.transport->Send(1, {}, {}));
  EXPECT_THAT(a_.Poll(), ElementsAre("up 1"));
  const std::byte data[3] = {};
  const Bytes parts[] = {Bytes(data, 3), Bytes(data, 2)};
  EXPECT_TRUE(a_.transport->Send(1, {.dispatch = 1}, parts));
  EXPECT_TRUE(a_.transport->Send(1, {.dispatch = 2}, {}));
  EXPECT_THAT(b_.Poll(), ElementsAre("up 0", "frame 1 of 5", "frame 2 of 0"));
  EXPECT_THAT(b_.Poll(), ElementsAre());
}

TEST_F(LoopbackTransportTest, ABreakLosesWhatIsUnderWayAndANewConnectionStartsEmpty) {
  a_.Poll();
  b_.Poll();
  a_.transport->Send(1, {.dispatch = 1}, {});
  network_.Break(0, 1);
  EXPECT_FALSE(a_.transport->up(1));
  EXPECT_FALSE(a_.transport->Send(1, {.dispatch = 2}, {}));
  EXPECT_THAT(b_.Poll(), ElementsAre("down 0"));
  EXPECT_THAT(a_.Poll(), ElementsAre("down 1", "up 1"));
  a_.transport->Send(1, {.dispatch = 3}, {});
  EXPECT_THAT(b_.Poll(), ElementsAre("up 0", "frame 3 of 0"));
}

TEST_F(LoopbackTransportTest, ConnectsOnlyWhereBothMeanTheSameLife) {
  b_.transport->SetPeers({Entry(0, 9)});
  EXPECT_THAT(a_.Poll(), ElementsAre());
  b_.transport->SetPeers({Entry(0, 10)});
  EXPECT_THAT(a_.Poll(), ElementsAre("up 1"));
  b_.Poll();
  // Whoever is taken out of the peers hears nothing of it; the other end does.
  a_.transport->SetPeers({});
  EXPECT_THAT(a_.Poll(), ElementsAre());
  EXPECT_THAT(b_.Poll(), ElementsAre("down 0"));
}

TEST_F(LoopbackTransportTest, DeathIsNoticed) {
  a_.Poll();
  b_.Poll();
  a_.transport.reset();
  EXPECT_THAT(b_.Poll(), ElementsAre("down 0"));
}

}  // namespace
}  // namespace epic::cluster
