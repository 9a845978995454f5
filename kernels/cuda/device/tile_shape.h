// A tensor in global memory and the box of it that one bulk copy brings: what a TensorMap is made
// from, with the rules of the copy engine (CUDA driver API, cuTensorMapEncodeTiled). Both devices
// check them by TileProblem, so that the host's tests find what a driver would refuse.
#pragma once

#include <cstdint>

namespace epic::kernels::cuda {

inline constexpr int kTileDims = 3;
inline constexpr int kSwizzleBytes = 128;  // a row of a swizzled box

// Dimensions from the innermost. A box that leaves the tensor is filled up with zeros.
struct TileShape {
  const void* data = nullptr;  // 16-byte aligned
  int element_bytes = 1;       // 1, 2 or 4
  int64_t extent[kTileDims] = {1, 1, 1};
  int64_t stride_bytes[kTileDims - 1] = {16, 16};  // of dimensions 1 and 2; multiples of 16
  int box[kTileDims] = {1, 1, 1};                  // at most 256 each
  // The box's rows are 128 bytes, and their 16-byte chunks lie where Swizzled says
  // (matrix_layout.h).
  bool swizzled = false;

  int box_bytes() const { return element_bytes * box[0] * box[1] * box[2]; }
};

// The rule that `shape` breaks; null: none.
inline const char* TileProblem(const TileShape& shape) {
  if (reinterpret_cast<uintptr_t>(shape.data) % 16 != 0) return "data is not 16-byte aligned";
  const int bytes = shape.element_bytes;
  if (bytes != 1 && bytes != 2 && bytes != 4) return "element_bytes is not 1, 2 or 4";
  for (int i = 0; i < kTileDims; ++i) {
    if (shape.extent[i] < 1 || shape.extent[i] > (int64_t{1} << 32)) return "extent out of range";
    if (shape.box[i] < 1 || shape.box[i] > 256) return "box out of range";
  }
  for (const int64_t stride : shape.stride_bytes) {
    if (stride % 16 != 0 || stride <= 0 || stride >= (int64_t{1} << 40)) {
      return "stride_bytes is no multiple of 16 in range";
    }
  }
  if (shape.box[0] * bytes % 16 != 0) return "the box's rows are no multiple of 16 bytes";
  if (shape.swizzled && shape.box[0] * bytes != kSwizzleBytes) {
    return "the rows of a swizzled box are not 128 bytes";
  }
  return nullptr;
}

}  // namespace epic::kernels::cuda
