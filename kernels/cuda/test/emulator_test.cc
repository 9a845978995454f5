// The emulated device notices what the card would only punish now and then.
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/test/harness.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kSeeds = 20;

// Whether a launch under some seed breaks the rule that `part` names.
bool Breaks(int threads, int shared_bytes, const std::string& part,
            const std::function<void()>& body) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    try {
      RunEmulated({.threads = threads, .shared_bytes = shared_bytes, .seed = seed}, body);
    } catch (const DeviceError& error) {
      if (std::string(error.what()).find(part) != std::string::npos) return true;
      ReportFailure(error.what());
    }
  }
  return false;
}

// Threads read each other's values and then overwrite their own; true if all read the right ones
// under every seed.
bool Exchanges(bool with_barrier) {
  bool right = true;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    RunEmulated({.threads = 64, .shared_bytes = 256, .seed = seed}, [&] {
      const auto shared = SharedAt<int>(0, 64);
      shared.Store(ThreadIndex(), ThreadIndex());
      SyncBlock();
      right &= shared.Load(63 - ThreadIndex()) == 63 - ThreadIndex();
      if (with_barrier) SyncBlock();
      shared.Store(ThreadIndex(), -1);
    });
  }
  return right;
}

EPIC_KERNEL_TEST(AMissingBarrierShowsUnderSomeSeed) {
  Expect(Exchanges(true), "a value is wrong in spite of the barrier");
  Expect(!Exchanges(false), "a missing barrier was not noticed");
}

EPIC_KERNEL_TEST(ReadsOutOfBoundsAndOfUnwrittenBytesAreErrors) {
  Expect(Breaks(32, 128, "index 32", [] { SharedAt<int>(0, 32).Store(ThreadIndex() + 1, 0); }),
         "an index past a shared array");
  Expect(Breaks(32, 64, "outside", [] { SharedAt<int>(0, 32).Store(ThreadIndex(), 0); }),
         "an array past the block's shared memory");
  Expect(Breaks(32, 128, "nobody", [] { SharedAt<int>(0, 32).Load(ThreadIndex()); }),
         "a read of bytes that nobody wrote");
}

EPIC_KERNEL_TEST(DeadlocksAndDivergedWarpsAreErrors) {
  Expect(Breaks(64, 0, "deadlocked",
                [] {
                  if (ThreadIndex() != 7) SyncBlock();
                }),
         "a thread that misses a barrier");
  Expect(Breaks(32, 0, "diverged",
                [] {
                  if (ThreadIndex() < 16) {
                    SyncWarp();
                  } else {
                    Ballot(true);
                  }
                }),
         "two operations in one warp");
  Expect(Breaks(64, 0, "others count", [] { SyncThreads(1, ThreadIndex() < 32 ? 64 : 32); }),
         "unequal counts");
  Expect(Breaks(32, 8, "not initialised", [] { Arrive(SharedAt<uint64_t>(0, 1)); }),
         "a barrier that was not initialised");
  Expect(Breaks(32, 8, "one arrival too many",
                [] {
                  const auto barrier = SharedAt<uint64_t>(0, 1);
                  if (ThreadIndex() != 0) return;
                  InitBarrier(barrier, 1);
                  ArriveAndExpect(barrier, 16);
                  Arrive(barrier);
                }),
         "an arrival too many");
}

EPIC_KERNEL_TEST(AProductNeedsFenceAndWait) {
  const auto multiply = [](bool fence, bool wait, float* out) {
    const auto tile = SharedAt<uint32_t>(0, 72 * 32);
    for (int i = ThreadIndex(); i < 72 * 32; i += 128) tile.Store(i, 0x3f803f80u);  // ones
    if (fence) FenceAsyncProxy();
    SyncBlock();
    float d[8];
    for (float& value : d) value = -1;
    ProductsBegin();
    MultiplyBF16<16>(d, RowsDescriptor(tile.address()), RowsDescriptor(tile.address()), false);
    ProductsCommit();
    if (!wait) *out = d[0];
    ProductsWait<0>(d);
    if (wait) *out = d[0];
  };
  float out = 0;
  const int bytes = 72 * 128;
  Expect(Breaks(128, bytes, "without a fence", [&] { multiply(false, true, &out); }),
         "a product of what was not fenced");
  bool early = false;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const EmulatedLaunch launch = {.threads = 128, .shared_bytes = bytes, .seed = seed};
    RunEmulated(launch, [&] { multiply(true, false, &out); });
    early |= out != 16;
    RunEmulated(launch, [&] { multiply(true, true, &out); });
    Expect(out == 16, "a product of ones");
  }
  Expect(early, "a result read before the wait was not noticed");
}

EPIC_KERNEL_TEST(ACopyNeedsItsWait) {
  const std::vector<float> data(64, 3.0f);
  const TensorMap map = MakeTensorMap({.data = data.data(),
                                       .element_bytes = 4,
                                       .extent = {64, 1, 1},
                                       .stride_bytes = {256, 256},
                                       .box = {64, 1, 1}});
  const auto body = [&](bool wait) {
    const auto barrier = SharedAt<uint64_t>(256, 1);
    const auto tile = SharedAt<float>(0, 64);
    if (ThreadIndex() == 0) {
      InitBarrier(barrier, 1);
      ArriveAndExpect(barrier, 256);
      CopyTile(map, tile.address(), barrier, 0, 0, 0);
    }
    SyncWarp();
    if (wait) WaitForPhase(barrier, 0);
    if (tile.Load(ThreadIndex()) != 3.0f) ReportFailure("a copied value");
    WaitForPhase(barrier, 0);
  };
  Expect(Breaks(32, 264, "nobody", [&] { body(false); }), "a copy read before its wait");
  Expect(!Breaks(32, 264, "nobody", [&] { body(true); }), "a copy read after its wait");
}

}  // namespace
}  // namespace epic::kernels::cuda
