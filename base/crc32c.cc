#include "base/crc32c.h"

#include <array>
#include <cstring>

#ifdef __x86_64__
#include <nmmintrin.h>
#endif

namespace epic {
namespace {

// Castagnoli's polynomial with its bits in reverse, as the instruction of SSE4.2 has it built in.
constexpr uint32_t kPolynomialReflected = 0x82f63b78;

// tables[k][b]: the effect of byte b, k bytes before the end of a word (slicing by 8).
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kPolynomialReflected : 0);
    tables[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (uint32_t b = 0; b < 256; ++b) {
      const uint32_t before = tables[k - 1][b];
      tables[k][b] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

using Extend = uint32_t (*)(uint32_t, std::span<const std::byte>);

#ifdef __x86_64__
__attribute__((target("sse4.2"))) uint32_t ExtendCrc32cSse42(uint32_t crc,
                                                             std::span<const std::byte> bytes) {
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  // The sum is complemented at both ends. So a caller may go on from the sum of the bytes before.
  uint64_t state = ~crc;
  for (; left >= 8; at += 8, left -= 8) {
    // Copied: the bytes need not be aligned.
    uint64_t word;
    std::memcpy(&word, at, 8);
    state = _mm_crc32_u64(state, word);
  }
  auto narrow = static_cast<uint32_t>(state);
  for (; left > 0; ++at, --left) narrow = _mm_crc32_u8(narrow, static_cast<uint8_t>(*at));
  return ~narrow;
}
#endif

// One build serves all machines, so the processor is asked at run time. Both ways give the same
// sums, so two machines may check each other's frames.
Extend Choose() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("sse4.2")) return ExtendCrc32cSse42;
#endif
  return internal::ExtendCrc32cPortable;
}

}  // namespace

uint32_t internal::ExtendCrc32cPortable(uint32_t crc, std::span<const std::byte> bytes) {
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  uint32_t state = ~crc;
  // The bytes are put together by hand, so that any byte order gives the same sum.
  const auto byte = [&at](size_t i) { return static_cast<uint32_t>(at[i]); };
  for (; left >= 8; at += 8, left -= 8) {
    const uint32_t low = state ^ (byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24);
    state = kTables[7][low & 0xff] ^ kTables[6][low >> 8 & 0xff] ^ kTables[5][low >> 16 & 0xff] ^
            kTables[4][low >> 24] ^ kTables[3][byte(4)] ^ kTables[2][byte(5)] ^
            kTables[1][byte(6)] ^ kTables[0][byte(7)];
  }
  for (; left > 0; ++at, --left) state = (state >> 8) ^ kTables[0][(state ^ byte(0)) & 0xff];
  return ~state;
}

uint32_t ExtendCrc32c(uint32_t crc, std::span<const std::byte> bytes) {
  static const Extend extend = Choose();
  return extend(crc, bytes);
}

}  // namespace epic
