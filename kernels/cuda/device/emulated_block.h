// One block of CUDA threads on the host: a fiber per thread, run one at a time in an order drawn
// from a seed, so that a missing barrier shows as a wrong result under some seed. Asynchronous
// work (bulk copies, WGMMA) happens at some drawn moment between its issue and its wait.
//
// Broken rules end the launch with a DeviceError that names thread and rule: among them a deadlock,
// diverged warps, barriers with unequal counts, and all that SharedMemory sees.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/device/fiber.h"
#include "kernels/cuda/device/shared_memory.h"

namespace epic::kernels::cuda {

inline constexpr int kWarpThreads = 32;

struct EmulatedLaunch {
  int blocks = 1;
  int threads = kWarpThreads;  // a multiple of 32, at most 1024
  int shared_bytes = 0;
  uint64_t seed = 0;
};

// Runs `body` as each thread of each block; the blocks one after another in a drawn order.
void RunEmulated(const EmulatedLaunch& launch, const std::function<void()>& body);

class EmulatedBlock {
 public:
  EmulatedBlock(const EmulatedLaunch& launch, int block, std::vector<Fiber>& fibers, uint64_t seed);
  void Run(const std::function<void()>& body);

  // The block whose thread is running now.
  static EmulatedBlock& Current();

  int block() const { return block_; }
  int block_count() const { return launch_.blocks; }
  int thread_count() const { return launch_.threads; }
  int thread() const { return running_; }
  SharedMemory& shared() { return shared_; }

  // Lets others run, now and then.
  void MayYield();
  // barrier 0..15; `threads` as bar.sync takes it.
  void SyncThreads(int barrier, int threads);
  void ArriveThreads(int barrier, int threads);
  // Meets the 31 other threads of the warp at the same operation and shows everyone's value.
  const std::array<uint64_t, kWarpThreads>& MeetWarp(const char* operation, uint64_t value);

  // Barriers in shared memory that count arrivals and bytes (mbarrier).
  void InitBarrier(uint32_t address, int arrivals);
  void ArriveAtBarrier(uint32_t address, int64_t expected_bytes);
  void CompleteBytes(uint32_t address, int64_t bytes);
  void WaitForPhase(uint32_t address, uint32_t parity);

  // Done by the copy engine at some later moment.
  void CopyLater(std::function<void()> copy) { copies_.push_back(std::move(copy)); }
  // WGMMA of this thread: added to the open group; the group closed; all but `groups` finished.
  void AddProduct(std::function<void()> product);
  void CommitProducts();
  void WaitProducts(int groups);

  [[noreturn]] void Fail(const std::string& what) const;

 private:
  struct Thread {
    bool done = false;
    const char* waits_for = nullptr;  // null: can run
    std::function<bool()> ready;
    std::vector<std::function<void()>> open_products;
    std::deque<std::vector<std::function<void()>>> committed_products;
    int meetings = 0;
  };
  // bar.sync is one of these: `generation` counts its uses, each of which ends at `expected`
  // arrivals.
  struct NamedBarrier {
    int expected = 0;
    int arrived = 0;
    int64_t generation = 0;
  };
  // One operation that all threads of a warp must make together.
  struct Meeting {
    std::array<uint64_t, kWarpThreads> values;
    const char* operation = nullptr;
    int arrived = 0;
  };
  struct Warp {
    Meeting meetings[2];  // one being left, one being entered
    int completed = 0;
  };
  // mbarrier: a phase ends when no arrival is pending and all announced bytes have come.
  struct PhaseBarrier {
    int arrivals = 0;
    int pending = 0;
    int64_t bytes = 0;
    int64_t phase = 0;
  };

  uint64_t Draw();
  void WaitUntil(const char* what, std::function<bool()> ready);
  bool RunSomething();
  void RunCopy();
  void Arrive(NamedBarrier& barrier, int number, int threads);
  PhaseBarrier& BarrierAt(uint32_t address);
  void CheckPhase(PhaseBarrier& barrier);
  std::string Deadlock() const;

  EmulatedLaunch launch_;
  int block_;
  std::vector<Fiber>& fibers_;
  uint64_t random_;
  SharedMemory shared_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  NamedBarrier named_[16];
  std::map<uint32_t, PhaseBarrier> phase_barriers_;
  // Bulk copies that were issued and have not happened.
  std::vector<std::function<void()>> copies_;
  int running_ = 0;
  int alive_ = 0;
  // The first broken rule; fibers cannot throw to the caller, so Run does.
  std::string failure_;
};

}  // namespace epic::kernels::cuda
