// CRC32C (Castagnoli; RFC 3720 appendix B.4), by SSE4.2 where the processor has it. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace epic {

// Returns the sum of the bytes that gave `crc`, followed by `bytes`. The sum of no bytes is 0.
uint32_t ExtendCrc32c(uint32_t crc, std::span<const std::byte> bytes);

inline uint32_t Crc32c(std::span<const std::byte> bytes) { return ExtendCrc32c(0, bytes); }

namespace internal {
// ExtendCrc32c without SSE4.2. It gives the same numbers, and a test compares the two.
uint32_t ExtendCrc32cPortable(uint32_t crc, std::span<const std::byte> bytes);
}  // namespace internal

}  // namespace epic
