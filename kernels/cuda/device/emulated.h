// The primitives of device.h on the host, over the block that runs now.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/device/emulated_block.h"
#include "kernels/cuda/device/matrix_layout.h"
#include "kernels/cuda/device/tile_shape.h"
#include "kernels/math.h"
#include "kernels/number.h"

namespace epic::kernels::cuda {

inline EmulatedBlock& Block() { return EmulatedBlock::Current(); }

inline int ThreadIndex() { return Block().thread(); }
inline int LaneIndex() { return ThreadIndex() % 32; }
inline int WarpIndex() { return ThreadIndex() / 32; }
inline int WarpgroupIndex() { return ThreadIndex() / 128; }
inline int BlockIndex() { return Block().block(); }
inline int BlockCount() { return Block().block_count(); }

template <typename T>
class Shared {
 public:
  Shared(uint32_t address, int count) : address_(address), count_(count) {
    // The card faults at such an access.
    if (address % alignof(T) != 0) Block().Fail("a misaligned shared array");
  }
  T Load(int index) const {
    Check(index);
    // Others may run between any two accesses, as on a card.
    Block().MayYield();
    T value;
    Block().shared().Read(address_ + index * sizeof(T), &value, sizeof(T));
    return value;
  }
  void Store(int index, const T& value) const {
    Check(index);
    Block().MayYield();
    Block().shared().Write(address_ + index * sizeof(T), &value, sizeof(T), ThreadIndex());
  }
  uint32_t address() const { return address_; }

 private:
  void Check(int index) const {
    if (index < 0 || index >= count_) {
      Block().Fail("index " + std::to_string(index) + " of a shared array of " +
                   std::to_string(count_));
    }
  }
  uint32_t address_;
  int count_;
};

template <typename T>
Shared<T> SharedAt(int offset_bytes, int count) {
  return Shared<T>(SharedMemory::kBase + offset_bytes, count);
}

inline void SyncThreads(int barrier, int threads) { Block().SyncThreads(barrier, threads); }
inline void ArriveThreads(int barrier, int threads) { Block().ArriveThreads(barrier, threads); }
// Every thread of a block calls it; the launch knows how many these are.
void SyncBlock();
inline void SyncWarp() { Block().MeetWarp("SyncWarp", 0); }

template <typename T>
T ShuffleFrom(T value, int lane) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Block().MeetWarp("a shuffle", bits)[lane & 31];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
T ShuffleXor(T value, int mask) {
  return ShuffleFrom(value, LaneIndex() ^ mask);
}
inline int Uniform(int value) {
  for (const uint64_t other : Block().MeetWarp("Uniform", static_cast<uint32_t>(value))) {
    // On a card the compiler trusts this and may read one lane's value for all.
    if (static_cast<int>(other) != value) Block().Fail("Uniform of values that differ");
  }
  return value;
}
inline uint32_t Ballot(bool vote) {
  uint32_t votes = 0;
  const auto& values = Block().MeetWarp("a ballot", vote ? 1 : 0);
  for (int i = 0; i < 32; ++i) votes |= static_cast<uint32_t>(values[i]) << i;
  return votes;
}

inline void InitBarrier(Shared<uint64_t> barrier, int arrivals) {
  Block().InitBarrier(barrier.address(), arrivals);
}
inline void FenceBarrierInit() { Block().shared().Fence(ThreadIndex()); }
inline void Arrive(Shared<uint64_t> barrier) { Block().ArriveAtBarrier(barrier.address(), 0); }
inline void ArriveAndExpect(Shared<uint64_t> barrier, int bytes) {
  Block().ArriveAtBarrier(barrier.address(), bytes);
}
inline void WaitForPhase(Shared<uint64_t> barrier, uint32_t parity) {
  Block().WaitForPhase(barrier.address(), parity);
}

struct TensorMap {
  TileShape shape;
};
// Throws DeviceError where TileProblem finds one.
TensorMap MakeTensorMap(const TileShape& shape);
// The box at (x, y, z), from the innermost, to `to`, whose bytes `barrier` counts. One thread.
void CopyTile(const TensorMap& map, uint32_t to, Shared<uint64_t> barrier, int x, int y, int z);
// Nothing is cached here, so there is nothing to acquire.
inline void AcquireTensorMap(const TensorMap& map) {}
inline void FenceAsyncProxy() { Block().shared().Fence(ThreadIndex()); }

// The products' fences and waits are operations of a whole warp: a warp that has diverged is found
// here.
inline void ProductsBegin() { Block().MeetWarp("ProductsBegin", 0); }
inline void ProductsCommit() {
  Block().MeetWarp("ProductsCommit", 0);
  Block().CommitProducts();
}
template <int kGroups, int kCount>
void ProductsWait(float (&d)[kCount]) {
  Block().MeetWarp("ProductsWait", kGroups);
  Block().WaitProducts(kGroups);
}

enum class ProductKind { kE4M3, kBF16, kBF16Transposed };
// Adds the thread's part of D[64×columns] (+)= A·B to the thread's open products.
void AddProduct(ProductKind kind, int columns, float* d, uint64_t a, uint64_t b, bool accumulate);

template <int kColumns>
void MultiplyE4M3(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  AddProduct(ProductKind::kE4M3, kColumns, d, a, b, accumulate);
}
template <int kColumns>
void MultiplyBF16(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  AddProduct(ProductKind::kBF16, kColumns, d, a, b, accumulate);
}
template <int kColumns>
void MultiplyBF16Transposed(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  AddProduct(ProductKind::kBF16Transposed, kColumns, d, a, b, accumulate);
}

template <int kRegisters>
// Registers are not emulated (test/budget_test.cc counts them); that a whole warp comes here is.
void ReleaseRegisters() {
  Block().MeetWarp("ReleaseRegisters", kRegisters);
}
template <int kRegisters>
void ClaimRegisters() {
  Block().MeetWarp("ClaimRegisters", kRegisters);
}

inline float FastExp2(float x) {
  // ex2.approx.ftz flushes results below the normal numbers.
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline uint16_t ToE4M3Pair(float low, float high) {
  return static_cast<uint16_t>(ToE4M3(low) | ToE4M3(high) << 8);
}

struct FloatPair {
  float low, high;
};
inline FloatPair FromE4M3Pair(uint16_t pair) {
  return {E4M3ToFloat(static_cast<uint8_t>(pair)), E4M3ToFloat(static_cast<uint8_t>(pair >> 8))};
}
inline uint32_t ToBF16Pair(float low, float high) {
  return ToBF16(low).bits | static_cast<uint32_t>(ToBF16(high).bits) << 16;
}
inline int CountOnes(uint32_t bits) { return std::popcount(bits); }
inline int CountLeadingZeros(uint32_t bits) { return std::countl_zero(bits); }

inline int32_t AtomicAdd(int32_t* address, int32_t value) {
  // Fibers run one at a time and never yield in here, so this is atomic.
  const int32_t old = *address;
  *address += value;
  return old;
}

}  // namespace epic::kernels::cuda
