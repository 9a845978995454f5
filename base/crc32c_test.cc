#include "base/crc32c.h"

#include <string_view>
#include <vector>

#include "base/sim_loop.h"
#include "gtest/gtest.h"

namespace epic {
namespace {

std::vector<std::byte> BytesOf(std::string_view text) {
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

// RFC 3720 B.4 and the usual check value.
TEST(Crc32c, GivesThePublishedNumbers) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(BytesOf("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
  std::vector<std::byte> ascending;
  for (int i = 0; i < 32; ++i) ascending.push_back(static_cast<std::byte>(i));
  EXPECT_EQ(Crc32c(ascending), 0x46dd794eu);
}

TEST(Crc32c, IsTheSameInPiecesAtAnyOffsetAndInPortableCode) {
  SeededRandom random(1);
  std::vector<std::byte> bytes(300);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next());
  for (size_t start = 0; start < 9; ++start) {
    for (size_t size = 0; size < 200; size += 1 + random.Next() % 7) {
      const std::span<const std::byte> all = std::span(bytes).subspan(start, size);
      const size_t cut = size == 0 ? 0 : random.Next() % size;
      const uint32_t whole = Crc32c(all);
      EXPECT_EQ(ExtendCrc32c(Crc32c(all.first(cut)), all.subspan(cut)), whole);
      EXPECT_EQ(internal::ExtendCrc32cPortable(0, all), whole);
    }
  }
}

}  // namespace
}  // namespace epic
