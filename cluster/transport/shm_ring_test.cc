#include "cluster/transport/shm_ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/sim_loop.h"
#include "cluster/transport/testing/node.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using ::testing::HasSubstr;

constexpr size_t kBytes = kRingBytesMin;

SharedRings NewRings() { return *SharedRings::Create(kBytes); }

TEST(SharedRings, IsSeenThroughItsDescriptor) {
  const SharedRings mine = NewRings();
  const auto theirs = SharedRings::Map(UniqueFd(dup(mine.fd())), kBytes);
  ASSERT_TRUE(theirs.ok()) << theirs.status();
  mine.control(1).tail = 42;
  EXPECT_EQ(theirs->control(1).tail, 42u);
  for (int ring = 0; ring < 2; ++ring) {
    mine.data(ring)[5] = std::byte(7 + ring);
    EXPECT_EQ(theirs->data(ring)[5], std::byte(7 + ring));
    EXPECT_EQ(theirs->data(ring)[kBytes + 5], std::byte(7 + ring));  // mapped twice in a row
  }
}

TEST(SharedRings, RefusesMemoryThatIsNotWhatItShouldBe) {
  const auto memory = [](off_t size, int seals) {
    UniqueFd fd(memfd_create("test", MFD_ALLOW_SEALING));
    EXPECT_EQ(ftruncate(fd.get(), size), 0);
    EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    return fd;
  };
  const auto error = [](UniqueFd fd, size_t ring_bytes = kBytes) {
    return std::string(SharedRings::Map(std::move(fd), ring_bytes).status().message());
  };
  const off_t right = 4096 + 2 * kBytes;
  EXPECT_EQ(error(memory(right, F_SEAL_SHRINK)), "");
  EXPECT_THAT(error(memory(right, 0)), HasSubstr("not sealed"));
  EXPECT_THAT(error(memory(right, F_SEAL_GROW)), HasSubstr("not sealed"));
  EXPECT_THAT(error(memory(right - 1, F_SEAL_SHRINK)), HasSubstr("size is 135167, not 135168"));
  EXPECT_THAT(error(memory(right * 4, F_SEAL_SHRINK)), HasSubstr("size"));
  EXPECT_THAT(error(memory(0, F_SEAL_SHRINK)), HasSubstr("size"));
  EXPECT_NE(error(memory(right, F_SEAL_SHRINK | F_SEAL_WRITE)), "");
  EXPECT_THAT(error(UniqueFd(open("/dev/null", O_RDWR))), HasSubstr("not sealed"));
  EXPECT_THAT(error(UniqueFd(-1)), HasSubstr("not sealed"));
  EXPECT_THAT(error(memory(right, F_SEAL_SHRINK), 0), HasSubstr("ring_bytes is 0"));
  EXPECT_THAT(error(memory(right, F_SEAL_SHRINK), kBytes + 1), HasSubstr("power of two"));
  EXPECT_THAT(error(memory(right, F_SEAL_SHRINK), size_t{1} << 63), HasSubstr("power of two"));
}

TEST(Ring, CarriesAStreamInAnyPieces) {
  SeededRandom random(3);
  const SharedRings rings = NewRings();
  RingWriter writer(rings, 0);
  RingReader reader(rings, 0);
  const std::vector<std::byte> stream = Pattern(1, 40 * kBytes);
  size_t written = 0, read = 0;
  while (read < stream.size()) {
    const Bytes rest = Bytes(stream).subspan(written);
    const Bytes whole = rest.first(std::min<size_t>(rest.size(), random.Next() % (2 * kBytes)));
    const size_t cut = random.Next() % (whole.size() + 1);
    const Bytes parts[] = {whole.first(cut), {}, whole.subspan(cut)};
    const size_t skip = random.Next() % (whole.size() + 1);
    // The bytes that are skipped have been written before: here, on their own.
    const Bytes skipped = whole.first(skip);
    const size_t first = *writer.Write(std::span(&skipped, 1), 0);
    written += first;
    if (first == skip) written += *writer.Write(parts, skip);
    EXPECT_FALSE(writer.Publish());  // nobody sleeps
    const Bytes readable = *reader.Readable();
    ASSERT_EQ(readable.size(), written - read);
    ASSERT_LE(readable.size(), kBytes);
    const size_t count = random.Next() % (readable.size() + 1);
    ASSERT_TRUE(std::ranges::equal(readable.first(count), Bytes(stream).subspan(read, count)));
    reader.Consume(count);
    reader.Release();
    read += count;
  }
}

TEST(Ring, NothingIsSeenBeforePublish) {
  const SharedRings rings = NewRings();
  RingWriter writer(rings, 0);
  RingReader reader(rings, 0);
  const std::vector<std::byte> data = Pattern(1, 100);
  const Bytes part(data);
  EXPECT_EQ(*writer.Write(std::span(&part, 1), 0), 100u);
  EXPECT_TRUE(reader.Readable()->empty());
  EXPECT_FALSE(reader.HasMore());
  writer.Publish();
  EXPECT_TRUE(reader.HasMore());
  EXPECT_EQ(reader.Readable()->size(), 100u);
}

// Publish, then check: in every order of the four moves, a sleeper is rung or does not sleep.
TEST(Ring, ASleeperIsRungOnceOrSeesTheNews) {
  const SharedRings rings = NewRings();
  RingWriter writer(rings, 0);
  RingReader reader(rings, 0);
  const std::vector<std::byte> data(kBytes);
  const Bytes all(data), one = Bytes(data).first(1);
  EXPECT_FALSE(reader.Arm());
  EXPECT_EQ(*writer.Write(std::span(&one, 1), 0), 1u);
  EXPECT_TRUE(writer.Publish());   // asleep: rung
  EXPECT_FALSE(writer.Publish());  // once
  EXPECT_FALSE(reader.HasChecked());
  writer.Checked();
  EXPECT_TRUE(reader.HasChecked());
  EXPECT_TRUE(reader.Arm());  // news already: does not sleep
  reader.Disarm();
  EXPECT_EQ(reader.Readable()->size(), 1u);
  EXPECT_FALSE(reader.HasChecked());  // half a frame, say, that was seen and is left to lie
  reader.Consume(1);
  EXPECT_FALSE(reader.HasChecked());
  EXPECT_FALSE(reader.Release());

  EXPECT_EQ(*writer.Write(std::span(&all, 1), 0), kBytes);
  EXPECT_EQ(*writer.Write(std::span(&one, 1), 0), 0u);  // full
  EXPECT_FALSE(writer.Publish());                       // awake: not rung
  EXPECT_FALSE(writer.Arm());
  reader.Consume(reader.Readable()->size());
  EXPECT_TRUE(reader.Release());
  EXPECT_FALSE(reader.Release());
  EXPECT_TRUE(writer.Arm());  // room already
}

TEST(Ring, BelievesNoImpossibleIndex) {
  SeededRandom random(9);
  const std::vector<std::byte> data(2 * kBytes);
  const Bytes part(data);
  for (int i = 0; i < 1000; ++i) {
    const SharedRings rings = NewRings();
    RingWriter writer(rings, 0);
    RingReader reader(rings, 1);
    ASSERT_EQ(*writer.Write(std::span(&part, 1), 0), kBytes);
    const uint64_t index = random.Next() >> random.Next() % 64;
    rings.control(0).head = index;
    const auto written = writer.Write(std::span(&part, 1), 0);
    EXPECT_EQ(written.ok(), index <= kBytes) << index;
    if (written.ok()) {
      EXPECT_EQ(*written, index);
    }
    rings.control(1).tail = index;
    const auto readable = reader.Readable();
    EXPECT_EQ(readable.ok(), index <= kBytes) << index;
    if (readable.ok()) {
      EXPECT_EQ(readable->size(), index);
    }
    // Nor one that goes back.
    if (index == 0 || index > kBytes) continue;
    rings.control(0).head = index - 1;
    EXPECT_FALSE(writer.Write(std::span(&part, 1), 0).ok());
    rings.control(1).tail = index - 1;
    EXPECT_FALSE(reader.Readable().ok());
  }
}

}  // namespace
}  // namespace epic::cluster
