// How matrices lie in shared memory and registers for WGMMA: one definition for both devices and
// for the kernels. Source: PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace epic::kernels::cuda {

// Tiles begin at multiples of this, so that the swizzle is a function of the place in the tile.
inline constexpr int kTileAlignmentBytes = 1024;
inline constexpr int kTileRowBytes = 128;
inline constexpr int kWarpgroupRows = 64;

// Where the 128-byte swizzle puts a byte: bits 4..6 of its address ^= bits 7..9.
EPIC_HOST_DEVICE constexpr uint32_t Swizzled(uint32_t address) {
  return address ^ (((address >> 7) & 7u) << 4);
}

// An operand in shared memory, 128-byte swizzled. Rows of 128 bytes; 8 rows are an atom of 1 KiB.
//   K-major: a row is 128 bytes of K of one index of M or N; atoms of the next 8 indices follow
//   stride_bytes later, leading_bytes says nothing. Advance along K: 32 bytes of `address`.
//   MN-major (BF16 only): a row is 64 indices of N at one index of K; atoms of the next 8 of K
//   follow stride_bytes later, those of the next 64 of N leading_bytes later.
EPIC_HOST_DEVICE constexpr uint64_t MatrixDescriptor(uint32_t address, uint32_t leading_bytes,
                                                     uint32_t stride_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return ((address & 0x3ffffu) >> 4) | uint64_t{(leading_bytes & 0x3ffffu) >> 4} << 16 |
         uint64_t{(stride_bytes & 0x3ffffu) >> 4} << 32 | kSwizzle128;
}

EPIC_HOST_DEVICE constexpr uint64_t RowsDescriptor(uint32_t address) {
  // leading_bytes says nothing here (K-major).
  return MatrixDescriptor(address, 16, kTileAlignmentBytes);
}

// The accumulator d[N/2] of each thread of a warpgroup: element i is row AccumulatorRow, column
// AccumulatorColumn of the 64×N product. `thread` is 0..127.
EPIC_HOST_DEVICE constexpr int AccumulatorRow(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + (i / 2 % 2) * 8;
}
EPIC_HOST_DEVICE constexpr int AccumulatorColumn(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}

}  // namespace epic::kernels::cuda
