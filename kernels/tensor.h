// Number types and views of matrices. Views own nothing: the maker of one keeps the memory alive
// while the view is used. An activation is a Tensor in backend memory; a weight of a checkpoint is
// a SourceMatrix in mapped files, until a backend packs it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace epic::kernels {

// kI4: two values a byte; only in weights.
enum class DType : uint8_t { kF32, kF16, kBF16, kF8E4M3, kI32, kU8, kI8, kI4 };

// Bytes of one value; 0 for kI4, whose values have no bytes of their own.
constexpr int64_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF8E4M3:
    case DType::kU8:
    case DType::kI8:
      return 1;
    case DType::kI4:
      return 0;
  }
  return 0;
}

// The upper half of an IEEE float32.
struct BF16 {
  uint16_t bits;
};

// Rows of an activation in backend memory: [rows, cols], row-major, dense, 64-byte aligned base.
struct Tensor {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  void* data = nullptr;

  // T must be the type that dtype names; nothing checks it.
  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
  template <typename T>
  T* Row(int64_t row) const {
    return static_cast<T*>(data) + row * cols;
  }
  int64_t bytes() const { return rows * cols * DTypeBytes(dtype); }
  // Rows [begin, end) in the same memory. A slice's base may lose the 64-byte alignment.
  Tensor Slice(int64_t begin, int64_t end) const {
    return {dtype, end - begin, cols, As<std::byte>() + begin * cols * DTypeBytes(dtype)};
  }
};

// FP8 weights have one scale per block of 128 outputs by 128 inputs (DeepSeek-V3's format); INT4
// weights have one per 32 inputs of an output (compressed-tensors, as Kimi-K2-Thinking has it).
inline constexpr int kScaleBlock = 128;
inline constexpr int kInt4Group = 32;

// A weight as the checkpoint stores it: [rows, cols] row-major, y = x·Wᵀ (rows outputs, cols
// inputs). A vector has rows == 1. The bytes may be unaligned and are only read while loading.
// kF8E4M3 comes with scales [ceil(rows/128), ceil(cols/128)] float32 (unaligned too):
// W[i,j] = e4m3(data[i,j]) · scales[i/128, j/128].
// kI8 comes with scales [rows] (F32, F16 or BF16): W[i,j] = data[i,j] · scales[i].
// kI4 comes with scales [rows, ceil(cols/32)] in BF16. A row's values stand in ceil(cols/8) words
// of four bytes, the low nibble of a byte first: W[i,j] = (nibble − 8) · scales[i, j/32].
struct SourceMatrix {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const void* data = nullptr;
  const void* scales = nullptr;
  DType scales_dtype = DType::kF32;

  constexpr int64_t row_bytes() const {
    return dtype == DType::kI4 ? (cols + 7) / 8 * 4 : cols * DTypeBytes(dtype);
  }
  constexpr int64_t data_bytes() const { return rows * row_bytes(); }
  // How many scales such a matrix has: rows and columns of them.
  constexpr int64_t scale_rows() const {
    if (dtype == DType::kI8 || dtype == DType::kI4) return rows;
    return dtype == DType::kF8E4M3 ? (rows + kScaleBlock - 1) / kScaleBlock : 0;
  }
  constexpr int64_t scale_cols() const {
    if (dtype == DType::kI4) return (cols + kInt4Group - 1) / kInt4Group;
    return dtype == DType::kF8E4M3 ? (cols + kScaleBlock - 1) / kScaleBlock : 1;
  }
  constexpr int64_t scale_bytes() const {
    return scale_rows() * scale_cols() * DTypeBytes(scales_dtype);
  }
};

}  // namespace epic::kernels
