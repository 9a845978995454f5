// What strangers and peers gone mad can do to a rank: be refused, each named once, and harm nobody
// else. A pair of honest ranks is connected all the while and must stay so.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "cluster/transport/handshake.h"
#include "cluster/transport/shm_ring.h"
#include "cluster/transport/socket.h"
#include "cluster/transport/testing/node.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using ::testing::HasSubstr;

constexpr int kHostileRank = 9;
constexpr uint64_t kHostileGeneration = 0xbad;

Bytes BytesOf(const Hello& hello) { return std::as_bytes(std::span(&hello, 1)); }

class Hostile : public ::testing::Test {
 protected:
  Hostile() : victim_(1, {.run_dir = folder_.path()}), friend_(2, {.run_dir = folder_.path()}) {
    RankAddress hostile;
    hostile.rank = kHostileRank;
    hostile.generation = kHostileGeneration;
    hostile.pair_key = "key";
    victim_.SetPeers({friend_.entry(), hostile});
    friend_.SetPeers({victim_.entry()});
    CHECK(RunUntil(both_, [&] { return victim_.transport().up(2) && friend_.transport().up(1); }));
  }

  ~Hostile() override {
    // The others were not harmed.
    EXPECT_EQ(victim_.downs[2] + friend_.downs[1], 0);
    EXPECT_TRUE(friend_.SendPattern(1, 5, 5000));
    EXPECT_TRUE(RunUntil(both_, [&] { return victim_.frames[2].size() == 1; }));
  }

  std::string UnixPath() const {
    return absl::StrCat(folder_.path(), "/exchange-",
                        absl::Hex(victim_.generation(), absl::kZeroPad16), ".sock");
  }
  UniqueFd Dial(Wire wire) {
    auto socket =
        wire == Wire::kTcp ? DialTcp(victim_.transport().address()) : DialUnix(UnixPath());
    CHECK_OK(socket.status());
    RunRounds(both_, 2);
    return *std::move(socket);
  }
  // Runs the ranks until the victim has closed its end.
  bool Closed(int socket) {
    return RunUntil(both_, [&] {
      char bytes[1024];
      const ssize_t count = recv(socket, bytes, sizeof(bytes), MSG_DONTWAIT);
      return count == 0 || (count < 0 && errno != EAGAIN);
    });
  }
  Hello Receive(int socket) {
    Hello hello;
    size_t got = 0;
    std::vector<UniqueFd> ignored;
    CHECK(RunUntil(both_, [&] {
      const auto count =
          ReceiveSome(socket, std::as_writable_bytes(std::span(&hello, 1)).subspan(got), &ignored);
      CHECK_OK(count.status());
      got += *count;
      return got == sizeof(hello);
    }));
    return hello;
  }
  // The hello up to the proof; the socket, and the proof to send.
  std::pair<UniqueFd, Hello> Greet(Wire wire, uint64_t ring_bytes) {
    RankAddress entry = victim_.entry();
    DialerHandshake handshake({kHostileRank, kHostileGeneration}, entry, wire, ring_bytes,
                              Nonce{1});
    UniqueFd socket = Dial(wire);
    CHECK_OK(SendAll(socket.get(), BytesOf(handshake.Begin()), -1));
    const auto proof = handshake.OnAnswer(Receive(socket.get()));
    CHECK_OK(proof.status());
    return {std::move(socket), *proof};
  }
  // A tcp connection that is up.
  UniqueFd ConnectTcp() {
    auto [socket, proof] = Greet(Wire::kTcp, 0);
    CHECK_OK(SendAll(socket.get(), BytesOf(proof), -1));
    CHECK(RunUntil(both_, [&] { return victim_.transport().up(kHostileRank); }));
    Receive(socket.get());
    return std::move(socket);
  }
  // Runs until the victim has ended the hostile peer's connection; the reason.
  absl::Status Down() {
    const int before = victim_.downs[kHostileRank];
    CHECK(RunUntil(both_, [&] { return victim_.downs[kHostileRank] > before; }));
    return victim_.last_down[kHostileRank];
  }

  TestFolder folder_;
  Node victim_, friend_;
  const std::vector<Node*> both_{&victim_, &friend_};
};

TEST_F(Hostile, RandomBytesOnEveryListener) {
  SeededRandom random(1);
  int64_t refused = victim_.transport().refused_count();
  for (int i = 0; i < 200; ++i) {
    const UniqueFd socket = Dial(i % 2 ? Wire::kTcp : Wire::kShm);
    const auto bytes = Pattern(i, 64 + random.Next() % 2000);
    ASSERT_TRUE(SendAll(socket.get(), bytes, -1).ok());
    ASSERT_TRUE(Closed(socket.get()));
    ASSERT_EQ(victim_.transport().refused_count(), ++refused);
  }
  for (const char* text :
       {"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: scanner/1.0\r\n\r\n\r\n\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n-----------------------------------------"}) {
    const UniqueFd socket = Dial(Wire::kTcp);
    ASSERT_TRUE(SendAll(socket.get(), std::as_bytes(std::span(text, strlen(text))), -1).ok());
    ASSERT_TRUE(Closed(socket.get()));
  }
}

TEST_F(Hostile, HellosCutAnywhereAndChanged) {
  const DialerHandshake handshake({kHostileRank, kHostileGeneration}, victim_.entry(), Wire::kTcp,
                                  0, Nonce{1});
  const Hello begin = handshake.Begin();
  for (size_t bytes = 0; bytes < sizeof(Hello); bytes += 7) {
    const UniqueFd socket = Dial(bytes % 2 ? Wire::kTcp : Wire::kShm);
    ASSERT_TRUE(SendAll(socket.get(), BytesOf(begin).first(bytes), -1).ok());
    ASSERT_EQ(shutdown(socket.get(), SHUT_WR), 0);
    ASSERT_TRUE(Closed(socket.get()));
  }
  for (size_t at = 0; at < sizeof(Hello); at += 5) {
    Hello changed = begin;
    reinterpret_cast<uint8_t*>(&changed)[at] ^= 0x40;
    const UniqueFd socket = Dial(Wire::kTcp);
    ASSERT_TRUE(SendAll(socket.get(), BytesOf(changed), -1).ok());
    ASSERT_TRUE(Closed(socket.get()));
  }
  EXPECT_FALSE(victim_.transport().up(kHostileRank));
}

// Who says nothing holds a descriptor for two seconds at most, and 64 of them at most.
TEST_F(Hostile, SilentConnectionsAreFewAndEnd) {
  const int before = DescriptorCount();
  std::vector<UniqueFd> sockets;
  for (int i = 0; i < 300; ++i) sockets.push_back(Dial(i % 2 ? Wire::kTcp : Wire::kShm));
  RunRounds(both_, 20);
  EXPECT_LE(DescriptorCount() - before - 300, 64);
  // An honest rank gets in meanwhile.
  Node other(3, {.run_dir = folder_.path()});
  victim_.SetPeers({friend_.entry(), other.entry()});
  other.SetPeers({victim_.entry()});
  ASSERT_TRUE(RunUntil({&victim_, &friend_, &other}, [&] { return other.transport().up(1); }));
  for (const UniqueFd& socket : sockets) ASSERT_TRUE(Closed(socket.get()));
}

TEST_F(Hostile, APeerThatSendsWhatIsNoFrame) {
  const auto error = [&](auto change, bool seal = true) {
    const UniqueFd socket = ConnectTcp();
    const auto payload = Pattern(1, 128);
    const Bytes part(payload);
    FrameHeader header;
    header.kind = FrameKind::kDispatch;
    SealHeader({kHostileRank, kHostileGeneration}, std::span(&part, 1), true, &header);
    change(&header);
    if (seal) {
      header.crc = 0;
      header.crc = Crc32c(std::as_bytes(std::span(&header, 1)));
    }
    EXPECT_TRUE(SendAll(socket.get(), std::as_bytes(std::span(&header, 1)), -1).ok());
    EXPECT_TRUE(SendAll(socket.get(), part, -1).ok());
    const absl::Status why = Down();
    EXPECT_TRUE(absl::IsDataLoss(why));
    EXPECT_TRUE(Closed(socket.get()));
    return std::string(why.message());
  };
  const int64_t before = ResidentBytes();
  EXPECT_THAT(error([](FrameHeader* h) { h->magic = 0; }), HasSubstr("magic"));
  EXPECT_THAT(error([](FrameHeader* h) { h->version = 2; }), HasSubstr("version"));
  EXPECT_THAT(error([](FrameHeader* h) { h->crc ^= 1; }, false), HasSubstr("crc"));
  EXPECT_THAT(error([](FrameHeader* h) { h->payload_crc ^= 1; }), HasSubstr("crc"));
  EXPECT_THAT(error([](FrameHeader* h) { h->payload_bytes = 0x7fffffff; }), HasSubstr("at most"));
  EXPECT_THAT(error([](FrameHeader* h) { h->source = 1; }), HasSubstr("rank 1"));  // the victim
  EXPECT_THAT(error([](FrameHeader* h) { h->source = 2; }), HasSubstr("rank 2"));
  EXPECT_THAT(error([](FrameHeader* h) { h->generation = 0; }), HasSubstr("generation 0"));
  EXPECT_THAT(error([](FrameHeader* h) { h->kind = FrameKind::kHello; }), HasSubstr("kind"));
  EXPECT_LT(ResidentBytes() - before, 64 << 20);  // the length was believed nowhere
  EXPECT_TRUE(victim_.frames[kHostileRank].empty());
}

TEST_F(Hostile, AReplayedConversation) {
  auto [socket, proof] = Greet(Wire::kTcp, 0);
  auto [second, other_proof] = Greet(Wire::kTcp, 0);
  ASSERT_TRUE(SendAll(second.get(), BytesOf(proof), -1).ok());  // of the other's nonces
  EXPECT_TRUE(Closed(second.get()));
  EXPECT_FALSE(victim_.transport().up(kHostileRank));
}

class HostileMemory : public Hostile {
 protected:
  // Sends the proof with these descriptors; true if the victim takes the connection.
  bool Offer(std::vector<int> descriptors, uint64_t ring_bytes = kRingBytesMin) {
    auto [socket, proof] = Greet(Wire::kShm, ring_bytes);
    iovec stretch{&proof, sizeof(proof)};
    std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
    msghdr message{};
    message.msg_iov = &stretch;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
      std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size() * sizeof(int));
    }
    EXPECT_EQ(sendmsg(socket.get(), &message, MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(proof)));
    const Hello answer = Receive(socket.get());
    socket_ = std::move(socket);
    return answer.header.detail == static_cast<uint16_t>(HelloStage::kWelcome);
  }
  // Rings that both ends have mapped.
  SharedRings Share() {
    SharedRings rings = *SharedRings::Create(kRingBytesMin);
    EXPECT_TRUE(Offer({rings.fd()}));
    return rings;
  }

  UniqueFd socket_;
};

TEST_F(HostileMemory, IsRefusedUnlessItIsAsAgreed) {
  const int before = DescriptorCount();
  {
    const UniqueFd unsealed(memfd_create("test", MFD_ALLOW_SEALING));
    ASSERT_EQ(ftruncate(unsealed.get(), 4096 + 2 * kRingBytesMin), 0);
    EXPECT_FALSE(Offer({unsealed.get()}));
    const SharedRings rings = *SharedRings::Create(kRingBytesMin);
    EXPECT_FALSE(Offer({rings.fd()}, 2 * kRingBytesMin));  // of the wrong size
    EXPECT_FALSE(Offer({rings.fd()}, 0));
    EXPECT_FALSE(Offer({rings.fd()}, ~uint64_t{0}));
    EXPECT_FALSE(Offer({}));
    EXPECT_FALSE(Offer({rings.fd(), rings.fd()}));
    EXPECT_FALSE(Offer(std::vector<int>(100, rings.fd())));
    EXPECT_FALSE(Offer({socket_.get()}));
    socket_.reset();
    RunRounds(both_, 5);
  }
  EXPECT_EQ(DescriptorCount(), before);  // none that came along stays open
}

TEST_F(HostileMemory, RandomIndices) {
  SeededRandom random(4);
  for (int i = 0; i < 100; ++i) {
    const SharedRings rings = Share();
    ASSERT_TRUE(RunUntil(both_, [&] { return victim_.transport().up(kHostileRank); }));
    const int downs = victim_.downs[kHostileRank];
    // All of the control page and of what lies in the rings, again and again.
    for (int k = 0; k < 20 && victim_.downs[kHostileRank] == downs; ++k) {
      for (int ring = 0; ring < 2; ++ring) {
        RingControl& control = rings.control(ring);
        control.tail = random.Next() >> random.Next() % 64;
        control.head = random.Next() >> random.Next() % 64;
        control.checked = random.Next() >> random.Next() % 64;
        control.reader_sleeps = random.Next() % 2;
        control.writer_sleeps = static_cast<uint32_t>(random.Next());
        const auto noise = Pattern(k, 4096);
        std::memcpy(rings.data(ring), noise.data(), noise.size());
      }
      victim_.SendPattern(kHostileRank, k, random.Next() % 100000);
      RunRounds(both_, 1);
    }
    ASSERT_GT(victim_.downs[kHostileRank], downs);
    EXPECT_TRUE(absl::IsDataLoss(victim_.last_down[kHostileRank]));
  }
  EXPECT_TRUE(victim_.frames[kHostileRank].empty());
}

TEST_F(HostileMemory, AWriterThatNeverRingsIsHeardByTheTimer) {
  const SharedRings rings = Share();
  RingWriter writer(rings, 0);
  FrameHeader header;
  header.kind = FrameKind::kDispatch;
  SealHeader({kHostileRank, kHostileGeneration}, {}, false, &header);
  const Bytes frame = std::as_bytes(std::span(&header, 1));
  const int64_t before = victim_.transport().doorbell_rescues();
  victim_.loop().RunOnce(absl::ZeroDuration());
  // Published while the victim sleeps, by another thread; the bell that it asks for is not rung.
  const auto thread = RealThreads().Start("hostile", [&] {
    while (rings.control(0).reader_sleeps == 0) {
    }
    CHECK_OK(writer.Write(std::span(&frame, 1), 0).status());
    CHECK(writer.Publish());
    writer.Checked();
  });
  for (int i = 0; i < 100 && victim_.frames[kHostileRank].empty(); ++i) {
    victim_.loop().RunOnce(absl::InfiniteDuration());
  }
  EXPECT_EQ(victim_.frames[kHostileRank].size(), 1u);
  EXPECT_EQ(victim_.transport().doorbell_rescues(), before + 1);
}

TEST_F(HostileMemory, MoreBellsThanTheSocketHolds) {
  const SharedRings rings = Share();
  const std::vector<char> bells(4096);
  for (int i = 0; i < 500; ++i) {
    send(socket_.get(), bells.data(), bells.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (i % 10 == 0) RunRounds(both_, 1);
  }
  // Descriptors beside bells are dropped by the kernel.
  const int before = DescriptorCount();
  while (!SendAll(socket_.get(), std::as_bytes(std::span(bells)).first(1), rings.fd()).ok()) {
    RunRounds(both_, 1);
  }
  for (int i = 0; i < 1500; ++i) victim_.loop().RunOnce(absl::ZeroDuration());
  EXPECT_EQ(DescriptorCount(), before);
  EXPECT_TRUE(victim_.transport().up(kHostileRank));
}

TEST_F(Hostile, AProcessOfAnotherUserIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to be another user";
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  ASSERT_EQ(chmod(UnixPath().c_str(), 0777), 0);
  const int64_t refused = victim_.transport().refused_count();
  const std::string path = UnixPath();
  const DialerHandshake handshake({kHostileRank, kHostileGeneration}, victim_.entry(), Wire::kShm,
                                  kRingBytesMin, Nonce{1});
  const Hello begin = handshake.Begin();
  const pid_t child = fork();
  if (child == 0) {  // nothing but system calls
    if (setuid(65534) != 0) _exit(2);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) _exit(3);
    if (write(fd, &begin, sizeof(begin)) != sizeof(begin)) _exit(4);
    char byte;
    _exit(read(fd, &byte, 1) <= 0 ? 0 : 5);  // not a byte comes back
  }
  int status = -1;
  ASSERT_TRUE(RunUntil(both_, [&] { return waitpid(child, &status, WNOHANG) == child; }));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(victim_.transport().refused_count(), refused + 1);
}

}  // namespace
}  // namespace epic::cluster
