#include "kernels/cuda/device/emulated.h"

#include <vector>

namespace epic::kernels::cuda {
namespace {

constexpr int kChunkBytes = 16;
constexpr int kProductBytes = 32;  // of K, in one product

// An operand through its descriptor, as the matrix unit reads it.
class Operand {
 public:
  Operand(const SharedMemory& shared, uint64_t descriptor)
      : shared_(shared),
        address_(Field(descriptor, 0)),
        leading_(Field(descriptor, 16)),
        stride_(Field(descriptor, 32)) {
    if (descriptor >> 62 != 1) throw DeviceError("a matrix descriptor without 128-byte swizzle");
    if (address_ < SharedMemory::kBase) throw DeviceError("a matrix descriptor's address");
  }

  // 32 bytes of K at index `row` of M or N.
  void ReadRow(int row, std::byte* to) const {
    const uint32_t at = address_ + row / 8 * stride_ + row % 8 * kTileRowBytes;
    for (int chunk = 0; chunk < kProductBytes; chunk += kChunkBytes) {
      // The matrix unit reads through the asynchronous proxy, so it sees only what has been fenced.
      shared_.AsyncRead(Swizzled(at + chunk), to + chunk, kChunkBytes);
    }
  }
  // Index n of N at index k of K, MN-major.
  BF16 ReadTransposed(int n, int k) const {
    const uint32_t at =
        address_ + n / 64 * leading_ + n % 64 * 2 + k / 8 * stride_ + k % 8 * kTileRowBytes;
    BF16 value;
    shared_.AsyncRead(Swizzled(at), &value, sizeof(value));
    return value;
  }

 private:
  // Descriptors hold addresses and strides in units of 16 bytes (PTX ISA).
  static uint32_t Field(uint64_t descriptor, int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fffu) << 4;
  }
  const SharedMemory& shared_;
  uint32_t address_, leading_, stride_;
};

void Widen(ProductKind kind, const std::byte* from, float* to) {
  if (kind == ProductKind::kE4M3) {
    for (int i = 0; i < 32; ++i) to[i] = E4M3ToFloat(static_cast<uint8_t>(from[i]));
  } else {
    for (int i = 0; i < 16; ++i) to[i] = ToFloat(LoadUnaligned<BF16>(from, i));
  }
}

void Multiply(ProductKind kind, int columns, int thread, float* d, uint64_t a, uint64_t b,
              bool accumulate, const SharedMemory& shared) {
  const int depth = kind == ProductKind::kE4M3 ? 32 : 16;
  const Operand left(shared, a);
  const Operand right(shared, b);
  std::byte bytes[kProductBytes];
  float rows[2][32];
  for (int half = 0; half < 2; ++half) {
    left.ReadRow(AccumulatorRow(thread, 2 * half), bytes);
    Widen(kind, bytes, rows[half]);
  }
  float column[32];
  for (int i = 0; i < columns / 2; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const int n = AccumulatorColumn(thread, i + j);
      if (kind == ProductKind::kBF16Transposed) {
        for (int k = 0; k < depth; ++k) column[k] = ToFloat(right.ReadTransposed(n, k));
      } else {
        right.ReadRow(n, bytes);
        Widen(kind, bytes, column);
      }
      for (int half = 0; half < 2; ++half) {
        float sum = accumulate ? d[i + j + 2 * half] : 0;
        // K ascends and each step is an FMA, as in the oracle. A tensor core sums otherwise, which
        // is why the profile of the emulated device has a family of its own.
        for (int k = 0; k < depth; ++k) sum = Fma(rows[half][k], column[k], sum);
        d[i + j + 2 * half] = sum;
      }
    }
  }
}

}  // namespace

void SyncBlock() { Block().SyncThreads(0, Block().thread_count()); }

void AddProduct(ProductKind kind, int columns, float* d, uint64_t a, uint64_t b, bool accumulate) {
  EmulatedBlock& block = Block();
  // One word mixes all operands: lanes that differ in any of them are found.
  const uint64_t operands = (a * 3 + b) * 2 + (accumulate ? 1 : 0);
  for (const uint64_t other : block.MeetWarp("a matrix product", operands)) {
    if (other != operands) block.Fail("the operands of a product differ within a warp");
  }
  const int thread = block.thread() % 128;
  // `d` is written when the product happens, which is any moment until its wait.
  block.AddProduct([=, shared = &block.shared()] {
    Multiply(kind, columns, thread, d, a, b, accumulate, *shared);
  });
}

TensorMap MakeTensorMap(const TileShape& shape) {
  if (const char* problem = TileProblem(shape)) throw DeviceError(problem);
  return {shape};
}

void CopyTile(const TensorMap& map, uint32_t to, Shared<uint64_t> barrier, int x, int y, int z) {
  // The shape is taken by value: the copy happens later, when the map may be gone.
  const TileShape shape = map.shape;
  EmulatedBlock& block = Block();
  if (to % (shape.swizzled ? kTileAlignmentBytes : 128) != 0) block.Fail("a copy's target");
  block.CopyLater([=, &block, at = barrier.address()] {
    const int row_bytes = shape.box[0] * shape.element_bytes;
    std::vector<std::byte> row(row_bytes);
    uint32_t target = to;
    for (int k = z; k < z + shape.box[2]; ++k) {
      for (int j = y; j < y + shape.box[1]; ++j) {
        std::fill(row.begin(), row.end(), std::byte{0});
        if (k >= 0 && k < shape.extent[2] && j >= 0 && j < shape.extent[1]) {
          const auto* from = static_cast<const std::byte*>(shape.data) + j * shape.stride_bytes[0] +
                             k * shape.stride_bytes[1];
          for (int i = 0; i < shape.box[0]; ++i) {
            if (x + i < 0 || x + i >= shape.extent[0]) continue;
            std::memcpy(row.data() + i * shape.element_bytes, from + (x + i) * shape.element_bytes,
                        shape.element_bytes);
          }
        }
        for (int i = 0; i < row_bytes; i += kChunkBytes) {
          const uint32_t chunk = target + i;
          block.shared().AsyncWrite(shape.swizzled ? Swizzled(chunk) : chunk, row.data() + i,
                                    kChunkBytes);
        }
        target += row_bytes;
      }
    }
    // The whole box counts, with what lies outside of the tensor: as on a card, a barrier expects
    // the same bytes of every box.
    block.CompleteBytes(at, shape.box_bytes());
  });
}

}  // namespace epic::kernels::cuda
