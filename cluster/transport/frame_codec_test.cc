#include "cluster/transport/frame_codec.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/sim_loop.h"
#include "cluster/transport/testing/node.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using ::testing::HasSubstr;

constexpr FrameOrigin kSelf{3, 77};

std::vector<std::byte> FrameBytes(FrameHeader header, const std::vector<std::byte>& payload) {
  const Bytes part(payload);
  SealHeader(kSelf, std::span(&part, 1), /*with_payload_crc=*/true, &header);
  std::vector<Bytes> frame;
  LayOut(header, std::span(&part, 1), &frame);
  std::vector<std::byte> out;
  for (Bytes bytes : frame) out.insert(out.end(), bytes.begin(), bytes.end());
  return out;
}

FrameHeader Dispatch(uint64_t number) {
  FrameHeader header;
  header.kind = FrameKind::kDispatch;
  header.dispatch = number;
  return header;
}

// Feeds a stream in pieces of random sizes, as a wire would.
TEST(FrameReader, CutsAStreamAnywhere) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SeededRandom random(seed);
    std::vector<std::byte> stream;
    std::vector<size_t> sizes;
    for (uint64_t i = 0; i < 40; ++i) {
      sizes.push_back(random.Next() % (i % 5 == 0 ? 9000 : 200));
      const auto frame = FrameBytes(Dispatch(i), Pattern(i, sizes.back()));
      ASSERT_EQ(frame.size() % kFrameAlignment, 0u);
      stream.insert(stream.end(), frame.begin(), frame.end());
    }
    FrameReader reader(kSelf, /*with_payload_crc=*/true, 1024);
    size_t begin = 0, end = 0, frames = 0;
    const auto on_frame = [&](const FrameHeader& header, Bytes payload) {
      EXPECT_EQ(header.dispatch, frames);
      EXPECT_TRUE(std::ranges::equal(payload, Pattern(frames, sizes[frames])));
      ++frames;
      return true;
    };
    while (begin < stream.size()) {
      end = std::min(stream.size(), end + 1 + random.Next() % 700);
      while (begin < end) {
        if (const auto wanted = reader.wanted(); !wanted.empty()) {
          const size_t count = std::min(wanted.size(), end - begin);
          std::copy_n(stream.begin() + begin, count, wanted.begin());
          ASSERT_TRUE(reader.Received(count, on_frame).ok());
          begin += count;
          continue;
        }
        const auto used = reader.Read(Bytes(stream).subspan(begin, end - begin), on_frame);
        ASSERT_TRUE(used.ok()) << used.status();
        if (*used == 0) break;
        begin += *used;
      }
    }
    EXPECT_EQ(frames, sizes.size());
  }
}

TEST(FrameReader, StopsWhenTold) {
  auto stream = FrameBytes(Dispatch(1), Pattern(1, 10));
  const auto second = FrameBytes(Dispatch(2), Pattern(2, 10));
  stream.insert(stream.end(), second.begin(), second.end());
  FrameReader reader(kSelf, true, 1024);
  const auto used = reader.Read(stream, [](const FrameHeader&, Bytes) { return false; });
  EXPECT_EQ(*used, stream.size() - second.size());
}

// Each way in which a header can be wrong, its crc right.
TEST(FrameReader, RefusesWhatIsNoFrameOfThePeer) {
  const auto error = [](auto change, bool seal = true) {
    auto bytes = FrameBytes(Dispatch(1), Pattern(1, 100));
    FrameHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    change(&header);
    if (seal) {
      header.crc = 0;
      header.crc = Crc32c(std::as_bytes(std::span(&header, 1)));
    }
    std::memcpy(bytes.data(), &header, sizeof(header));
    FrameReader reader(kSelf, true, 1024);
    const auto read = reader.Read(bytes, [](const FrameHeader&, Bytes) {
      ADD_FAILURE();
      return true;
    });
    EXPECT_TRUE(reader.wanted().empty());
    EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
    return std::string(read.status().message());
  };
  EXPECT_THAT(error([](FrameHeader* h) { h->magic ^= 1; }), HasSubstr("magic"));
  EXPECT_THAT(error([](FrameHeader* h) { h->version = 9; }), HasSubstr("version is 9, not 1"));
  EXPECT_THAT(error([](FrameHeader* h) { h->flags = kFrameExtended | kFrameDecode; }),
              HasSubstr("flags is 32769: bit 15 tells of an extended header"));
  EXPECT_THAT(error([](FrameHeader* h) { h->source = 4; }), HasSubstr("rank 4"));
  EXPECT_THAT(error([](FrameHeader* h) { h->source = -3; }), HasSubstr("rank -3"));
  EXPECT_THAT(error([](FrameHeader* h) { h->generation = 78; }), HasSubstr("generation 4e"));
  EXPECT_THAT(error([](FrameHeader* h) { h->kind = FrameKind::kHello; }), HasSubstr("kind is 1"));
  EXPECT_THAT(error([](FrameHeader* h) { h->payload_bytes = 0x7fffffff; }),
              HasSubstr("payload_bytes is 2147483647, at most 67108864"));
  EXPECT_THAT(error([](FrameHeader* h) { h->payload_crc ^= 1; }), HasSubstr("payload"));
  for (size_t bit = 0; bit < 8 * sizeof(FrameHeader); ++bit) {
    error([bit](FrameHeader* h) { reinterpret_cast<uint8_t*>(h)[bit / 8] ^= 1 << bit % 8; },
          /*seal=*/false);
  }
}

TEST(FrameReader, ChecksThePayloadOfALargeFrame) {
  auto bytes = FrameBytes(Dispatch(1), Pattern(1, 5000));
  bytes[3000] ^= std::byte{1};
  FrameReader reader(kSelf, true, 1024);
  const auto on_frame = [](const FrameHeader&, Bytes) {
    ADD_FAILURE();
    return true;
  };
  ASSERT_EQ(*reader.Read(bytes, on_frame), sizeof(FrameHeader));
  const auto wanted = reader.wanted();
  ASSERT_EQ(wanted.size(), PaddedBytes(5000));
  std::copy_n(bytes.begin() + sizeof(FrameHeader), wanted.size(), wanted.begin());
  EXPECT_EQ(reader.Received(wanted.size(), on_frame).code(), absl::StatusCode::kDataLoss);
}

TEST(OutQueue, KeepsTheStream) {
  SeededRandom random(5);
  OutQueue queue;
  std::vector<std::byte> in, out;
  for (int i = 0; i < 400; ++i) {
    const auto bytes = Pattern(i, random.Next() % 3 == 0 ? random.Next() % 200000 : i);
    const size_t cut = bytes.empty() ? 0 : random.Next() % bytes.size();
    const size_t skip = bytes.empty() ? 0 : random.Next() % bytes.size();
    const Bytes parts[] = {Bytes(bytes).first(cut), {}, Bytes(bytes).subspan(cut)};
    queue.Append(parts, skip);
    in.insert(in.end(), bytes.begin() + skip, bytes.end());
    size_t take = queue.empty() ? 0 : random.Next() % queue.bytes();
    if (i == 399) take = queue.bytes();
    for (size_t left = take; left > 0;) {
      const std::vector<Bytes> front = queue.Front(2);
      ASSERT_LE(front.size(), 2u);
      const size_t count = std::min(left, front[0].size());
      out.insert(out.end(), front[0].begin(), front[0].begin() + count);
      queue.Consume(count);
      left -= count;
    }
    ASSERT_EQ(queue.bytes(), in.size() - out.size());
  }
  EXPECT_TRUE(queue.empty());
  EXPECT_TRUE(in == out);
}

}  // namespace
}  // namespace epic::cluster
