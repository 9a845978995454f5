#include "cluster/control_session.h"

#include <gtest/gtest.h>

#include "base/sim_loop.h"

namespace epic::cluster {
namespace {

v1::ControlMessage Message(int64_t value) {
  v1::ControlMessage message;
  message.mutable_load_progress()->set_loaded_bytes(value);
  return message;
}

// One direction of a connection: keeps order, and loses a suffix when it is cut.
struct Wire {
  std::deque<v1::ControlFrame> frames;
};

struct End {
  ControlSession session;
  std::vector<int64_t> got;
  int64_t next = 0;

  void Receive(Wire& wire) {
    if (wire.frames.empty()) return;
    bool fresh = false;
    ASSERT_TRUE(session.OnFrame(wire.frames.front(), &fresh).ok());
    if (fresh) got.push_back(wire.frames.front().message().load_progress().loaded_bytes());
    wire.frames.pop_front();
  }
  void Write(Wire& wire) {
    if (auto frame = session.NextFrame()) wire.frames.push_back(*frame);
  }
};

TEST(ControlSessionTest, EveryMessageArrivesOnceAndInOrderOverAnyCuts) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SeededRandom random(seed);
    End a, b;
    Wire to_a, to_b;
    const auto drain = [&] {
      for (int i = 0; i < 10000; ++i) {
        a.Write(to_b), b.Write(to_a), a.Receive(to_a), b.Receive(to_b);
      }
    };
    for (int event = 0; event < 2000; ++event) {
      switch (random.Next() % 9) {
        case 0:
          ASSERT_TRUE(a.session.Send(Message(a.next++)).ok());
          break;
        case 1:
          ASSERT_TRUE(b.session.Send(Message(b.next++)).ok());
          break;
        case 2:
        case 3:
          a.Write(to_b);
          break;
        case 4:
        case 5:
          b.Write(to_a);
          break;
        case 6:
          a.Receive(to_a);
          break;
        case 7:
          b.Receive(to_b);
          break;
        default:
          if (random.Next() % 8 != 0) break;
          to_a.frames.clear(), to_b.frames.clear();
          ASSERT_TRUE(a.session.Connect(b.session.received()).ok());
          ASSERT_TRUE(b.session.Connect(a.session.received()).ok());
      }
    }
    drain();
    ASSERT_EQ(static_cast<int64_t>(a.got.size()), b.next);
    ASSERT_EQ(static_cast<int64_t>(b.got.size()), a.next);
    for (size_t i = 0; i < a.got.size(); ++i) ASSERT_EQ(a.got[i], static_cast<int64_t>(i));
    for (size_t i = 0; i < b.got.size(); ++i) ASSERT_EQ(b.got[i], static_cast<int64_t>(i));
    EXPECT_LT(a.session.unacknowledged_count(), ControlSession::kAcknowledgedMessages);
    EXPECT_LT(b.session.unacknowledged_count(), ControlSession::kAcknowledgedMessages);
  }
}

TEST(ControlSessionTest, AcknowledgementsGoAloneAfterManyMessagesOrBytes) {
  End a, b;
  Wire to_a, to_b;
  for (uint64_t i = 1; i <= ControlSession::kAcknowledgedMessages; ++i) {
    ASSERT_TRUE(a.session.Send(Message(a.next++)).ok());
    a.Write(to_b), b.Receive(to_b), b.Write(to_a);
    EXPECT_EQ(to_a.frames.size(), i < ControlSession::kAcknowledgedMessages ? 0u : 1u) << i;
  }
  a.Receive(to_a);
  EXPECT_EQ(a.session.unacknowledged_count(), 0u);
  v1::ControlMessage large;
  large.mutable_revoked()->set_reason(std::string(ControlSession::kAcknowledgedBytes, 'x'));
  ASSERT_TRUE(a.session.Send(large).ok());
  auto frame = a.session.NextFrame();
  bool fresh = false;
  ASSERT_TRUE(b.session.OnFrame(*frame, &fresh).ok());
  b.Write(to_a);
  EXPECT_EQ(to_a.frames.size(), 1u);
}

TEST(ControlSessionTest, AGapBreaksTheConnection) {
  ControlSession session;
  v1::ControlFrame frame;
  frame.set_number(2);
  bool fresh = true;
  EXPECT_EQ(session.OnFrame(frame, &fresh).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(fresh);
}

TEST(ControlSessionTest, AnAcknowledgementOfWhatWasNeverSentIsRefused) {
  ControlSession session;
  v1::ControlFrame frame;
  frame.set_acknowledged(1);
  bool fresh = false;
  EXPECT_EQ(session.OnFrame(frame, &fresh).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(session.Connect(5).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace epic::cluster
