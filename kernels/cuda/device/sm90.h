// The primitives of device.h as PTX for sm_90a. Source of each instruction: the PTX ISA manual.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device/matrix_layout.h"
#include "kernels/cuda/device/sm90_products.h"
#include "kernels/cuda/device/tile_shape.h"
#include "kernels/math.h"
#include "kernels/number.h"

namespace epic::kernels::cuda {

// The window is aligned as tiles are, so that an offset's alignment is the address's.
extern __shared__ __align__(1024) unsigned char shared_window[];

EPIC_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
EPIC_DEVICE int LaneIndex() { return ThreadIndex() % 32; }
EPIC_DEVICE int WarpIndex() { return ThreadIndex() / 32; }
EPIC_DEVICE int WarpgroupIndex() { return ThreadIndex() / 128; }
EPIC_DEVICE int BlockIndex() { return static_cast<int>(blockIdx.x); }
EPIC_DEVICE int BlockCount() { return static_cast<int>(gridDim.x); }

template <typename T>
// Bounds are not checked here; the emulated device checks them.
class Shared {
 public:
  EPIC_DEVICE explicit Shared(T* data) : data_(data) {}
  EPIC_DEVICE T Load(int index) const { return data_[index]; }
  EPIC_DEVICE void Store(int index, const T& value) const { data_[index] = value; }
  EPIC_DEVICE uint32_t address() const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(data_));
  }

 private:
  T* data_;
};

template <typename T>
EPIC_DEVICE Shared<T> SharedAt(int offset_bytes, int count) {
  return Shared<T>(reinterpret_cast<T*>(shared_window + offset_bytes));
}

EPIC_DEVICE void SyncBlock() { __syncthreads(); }
EPIC_DEVICE void SyncWarp() { __syncwarp(); }
EPIC_DEVICE void SyncThreads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
EPIC_DEVICE void ArriveThreads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

template <typename T>
EPIC_DEVICE T ShuffleFrom(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
EPIC_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// The shuffle tells the compiler that all lanes have one value: branches on it are a warp's.
EPIC_DEVICE int Uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }
EPIC_DEVICE uint32_t Ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }

// `memory` in all of these: the compiler must move no access to memory across them.
EPIC_DEVICE void InitBarrier(Shared<uint64_t> barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier.address()), "r"(arrivals)
               : "memory");
}
// The copy engine must see the barriers as made, not as memory that threads wrote.
EPIC_DEVICE void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
EPIC_DEVICE void Arrive(Shared<uint64_t> barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier.address()) : "memory");
}
EPIC_DEVICE void ArriveAndExpect(Shared<uint64_t> barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier.address()),
               "r"(bytes)
               : "memory");
}
// A wait of seconds is a bug: it becomes a fault, which the host hears of.
EPIC_DEVICE void WaitForPhase(Shared<uint64_t> barrier, uint32_t parity) {
  constexpr uint64_t kNanoseconds = 4'000'000'000;
  constexpr uint32_t kTriesBetween = 1u << 12;  // looks at the clock
  uint32_t done = 0;
  uint64_t begin = 0;
  for (uint32_t tries = 0; done == 0; ++tries) {
    if (tries % kTriesBetween == kTriesBetween - 1) {
      uint64_t now;
      asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
      if (begin == 0) begin = now;
      if (now - begin > kNanoseconds) __trap();
    }
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier.address()), "r"(parity)
        : "memory");
  }
}

using TensorMap = CUtensorMap;

// On the host: aborts where TileProblem finds a problem or the driver refuses.
TensorMap MakeTensorMap(const TileShape& shape);

EPIC_DEVICE void CopyTile(const TensorMap& map, uint32_t to, Shared<uint64_t> barrier, int x, int y,
                          int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(barrier.address()), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// Of a map that the host wrote to global memory.
EPIC_DEVICE void AcquireTensorMap(const TensorMap& map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(
                   reinterpret_cast<uint64_t>(&map))
               : "memory");
}
// Threads write shared memory by another path than products and copies read it: without the fence
// those may see old bytes.
EPIC_DEVICE void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

EPIC_DEVICE void ProductsBegin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
EPIC_DEVICE void ProductsCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroups, int kCount>
EPIC_DEVICE void ProductsWait(float (&d)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
  // The compiler must not read d above the wait.
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int kRegisters>
EPIC_DEVICE void ReleaseRegisters() {
  // All warps of the warpgroup must come here (PTX ISA).
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
EPIC_DEVICE void ClaimRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

EPIC_DEVICE float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The instruction's first operand is the upper half.
EPIC_DEVICE uint16_t ToE4M3Pair(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}

struct FloatPair {
  float low, high;
};
// There is no instruction to FP32: the way goes by binary16, which holds every E4M3 value exactly.
EPIC_DEVICE FloatPair FromE4M3Pair(uint16_t pair) {
  FloatPair values;
  asm("{\n"
      ".reg .b32 halves;\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.f16x2.e4m3x2 halves, %2;\n"
      "mov.b32 {low, high}, halves;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n"
      "}\n"
      : "=f"(values.low), "=f"(values.high)
      : "h"(pair));
  return values;
}
EPIC_DEVICE uint32_t ToBF16Pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
EPIC_DEVICE int CountOnes(uint32_t bits) { return __popc(bits); }
EPIC_DEVICE int CountLeadingZeros(uint32_t bits) { return __clz(static_cast<int>(bits)); }

EPIC_DEVICE int32_t AtomicAdd(int32_t* address, int32_t value) { return atomicAdd(address, value); }

}  // namespace epic::kernels::cuda
