#include "kernels/cuda/device/emulated_block.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace epic::kernels::cuda {
namespace {

// There is one for the process: kernels reach it by plain functions, as on a card. So RunEmulated
// must never run on two threads at once.
EmulatedBlock* current = nullptr;

// These odds are chosen: threads change places often enough for a missing barrier to show under
// some seed, and seldom enough for tests to stay quick.
constexpr int kYieldOneIn = 64;
constexpr int kCopyOneIn = 8;
// A block has 16 named barriers (PTX ISA, bar).
constexpr int kBarriers = 16;

// This is SplitMix64, written out so that a seed gives the same order with every standard library.
uint64_t SplitMix(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

void RunEmulated(const EmulatedLaunch& launch, const std::function<void()>& body) {
  if (launch.threads <= 0 || launch.threads % kWarpThreads != 0 || launch.threads > 1024) {
    throw DeviceError("a block of " + std::to_string(launch.threads) + " threads");
  }
  uint64_t random = launch.seed;
  // All blocks share them: a stack for each thread of each block would be dear.
  std::vector<Fiber> fibers(launch.threads);
  // The order is drawn, so that no kernel relies on which block comes first.
  std::vector<int> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0);
  for (int i = launch.blocks - 1; i > 0; --i) {
    std::swap(order[i], order[SplitMix(random) % static_cast<uint64_t>(i + 1)]);
  }
  for (const int block : order) {
    EmulatedBlock(launch, block, fibers, SplitMix(random)).Run(body);
  }
}

EmulatedBlock::EmulatedBlock(const EmulatedLaunch& launch, int block, std::vector<Fiber>& fibers,
                             uint64_t seed)
    : launch_(launch),
      block_(block),
      fibers_(fibers),
      random_(seed),
      shared_(launch.shared_bytes, launch.threads),
      threads_(launch.threads),
      warps_(launch.threads / kWarpThreads) {}

EmulatedBlock& EmulatedBlock::Current() { return *current; }

uint64_t EmulatedBlock::Draw() { return SplitMix(random_); }

void EmulatedBlock::Fail(const std::string& what) const {
  throw DeviceError("block " + std::to_string(block_) + ", thread " + std::to_string(running_) +
                    ": " + what);
}

void EmulatedBlock::Run(const std::function<void()>& body) {
  alive_ = launch_.threads;
  for (int t = 0; t < launch_.threads; ++t) {
    fibers_[t].Start([this, t, &body] {
      try {
        body();
        if (!threads_[t].open_products.empty() || !threads_[t].committed_products.empty()) {
          Fail("ends with matrix products that it did not wait for");
        }
      // No exception may leave a fiber: its stack has no caller that could catch it.
      } catch (const std::exception& error) {
        failure_ = error.what();
      }
    });
  }
  current = this;
  // After a failure the other fibers stay where they stand, and their stacks are dropped.
  while (alive_ > 0 && failure_.empty()) {
    if (!RunSomething()) failure_ = Deadlock();
  }
  if (failure_.empty() && !copies_.empty()) {
    failure_ = "block " + std::to_string(block_) + " ends before its copies have arrived";
  }
  current = nullptr;
  if (!failure_.empty()) throw DeviceError(failure_);
}

// Runs a drawn thread that can run, or a copy. False: there is neither.
bool EmulatedBlock::RunSomething() {
  if (!copies_.empty() && Draw() % kCopyOneIn == 0) {
    RunCopy();
    return true;
  }
  const int count = launch_.threads;
  // The search begins at a drawn thread and takes the first that can run.
  const int first = static_cast<int>(Draw() % static_cast<uint64_t>(count));
  for (int i = 0; i < count; ++i) {
    const int t = (first + i) % count;
    Thread& thread = threads_[t];
    if (thread.done || (thread.waits_for != nullptr && !thread.ready())) continue;
    thread.waits_for = nullptr;
    running_ = t;
    if (!fibers_[t].Resume()) {
      thread.done = true;
      --alive_;
    }
    return true;
  }
  // All threads wait: now only a copy can free one of them.
  if (copies_.empty()) return false;
  RunCopy();
  return true;
}

void EmulatedBlock::RunCopy() {
  // Copies arrive in any order, as the copy engine promises none.
  std::swap(copies_[Draw() % copies_.size()], copies_.back());
  const std::function<void()> copy = std::move(copies_.back());
  copies_.pop_back();
  try {
    copy();
  } catch (const std::exception& error) {
    failure_ = error.what();
  }
}

std::string EmulatedBlock::Deadlock() const {
  std::map<std::string, int> waiting;
  for (const Thread& thread : threads_) {
    if (!thread.done) ++waiting[thread.waits_for];
  }
  std::string text = "block " + std::to_string(block_) + " is deadlocked:";
  for (const auto& [what, count] : waiting) {
    text += " " + std::to_string(count) + " threads wait at " + what + ";";
  }
  return text;
}

void EmulatedBlock::MayYield() {
  // Every access to shared memory calls this, so that others may come in between.
  if (Draw() % kYieldOneIn == 0) fibers_[running_].Yield();
}

void EmulatedBlock::WaitUntil(const char* what, std::function<bool()> ready) {
  Thread& thread = threads_[running_];
  thread.waits_for = what;
  thread.ready = std::move(ready);
  fibers_[running_].Yield();
}

void EmulatedBlock::Arrive(NamedBarrier& barrier, int number, int threads) {
  if (number < 0 || number >= kBarriers) Fail("barrier " + std::to_string(number));
  // On a card the behaviour of threads that name different counts is not defined.
  if (barrier.arrived > 0 && barrier.expected != threads) {
    Fail("barrier " + std::to_string(number) + " of " + std::to_string(threads) +
         " threads, where others count " + std::to_string(barrier.expected));
  }
  barrier.expected = threads;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

void EmulatedBlock::SyncThreads(int number, int threads) {
  // The mask keeps the index valid; Arrive reports a number out of range.
  NamedBarrier& barrier = named_[number & (kBarriers - 1)];
  // The count of arrivals may already belong to the next use when this thread looks again; the
  // generation tells whether its own use is over.
  const int64_t mine = barrier.generation;
  Arrive(barrier, number, threads);
  WaitUntil("a barrier of threads", [&barrier, mine] { return barrier.generation != mine; });
}

void EmulatedBlock::ArriveThreads(int number, int threads) {
  Arrive(named_[number & (kBarriers - 1)], number, threads);
  MayYield();
}

const std::array<uint64_t, kWarpThreads>& EmulatedBlock::MeetWarp(const char* operation,
                                                                  uint64_t value) {
  Warp& warp = warps_[running_ / kWarpThreads];
  // A thread may enter the next meeting while others still read this one, but not the one after
  // that, which needs all 32: so two places are enough.
  const int number = threads_[running_].meetings++;
  Meeting& meeting = warp.meetings[number % 2];
  if (meeting.arrived == 0) meeting.operation = operation;
  if (std::strcmp(meeting.operation, operation) != 0) {
    Fail(std::string("its warp has diverged: it is at ") + operation + ", others at " +
         meeting.operation);
  }
  meeting.values[running_ % kWarpThreads] = value;
  if (++meeting.arrived == kWarpThreads) {
    meeting.arrived = 0;
    ++warp.completed;
  }
  WaitUntil(operation, [&warp, number] { return warp.completed > number; });
  return meeting.values;
}

EmulatedBlock::PhaseBarrier& EmulatedBlock::BarrierAt(uint32_t address) {
  const auto found = phase_barriers_.find(address);
  if (found == phase_barriers_.end()) {
    Fail("the barrier at shared byte " + std::to_string(address - SharedMemory::kBase) +
         " is not initialised");
  }
  return found->second;
}

void EmulatedBlock::InitBarrier(uint32_t address, int arrivals) {
  if (address % 8 != 0 || arrivals <= 0) Fail("a barrier's address or count is wrong");
  const uint64_t state = 0;
  shared_.Write(address, &state, sizeof(state), running_);
  phase_barriers_[address] = {.arrivals = arrivals, .pending = arrivals};
}

void EmulatedBlock::CheckPhase(PhaseBarrier& barrier) {
  // A phase ends when all arrivals and all announced bytes are in, whichever comes last.
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.pending = barrier.arrivals;
    ++barrier.phase;
  }
}

void EmulatedBlock::ArriveAtBarrier(uint32_t address, int64_t expected_bytes) {
  PhaseBarrier& barrier = BarrierAt(address);
  barrier.bytes += expected_bytes;
  if (--barrier.pending < 0) Fail("one arrival too many in a barrier's phase");
  CheckPhase(barrier);
  MayYield();
}

void EmulatedBlock::CompleteBytes(uint32_t address, int64_t bytes) {
  PhaseBarrier& barrier = BarrierAt(address);
  barrier.bytes -= bytes;
  CheckPhase(barrier);
}

void EmulatedBlock::WaitForPhase(uint32_t address, uint32_t parity) {
  PhaseBarrier& barrier = BarrierAt(address);
  // As with mbarrier.try_wait.parity, the wait ends when the phase of that parity is over, so the
  // other parity passes at once at a new barrier.
  WaitUntil("a barrier in shared memory",
            [&barrier, parity] { return (barrier.phase & 1) != static_cast<int64_t>(parity); });
}

void EmulatedBlock::AddProduct(std::function<void()> product) {
  threads_[running_].open_products.push_back(std::move(product));
}

void EmulatedBlock::CommitProducts() {
  Thread& thread = threads_[running_];
  thread.committed_products.push_back(std::move(thread.open_products));
  thread.open_products.clear();
  // A product that is computed here misses operands that are written too late; one that is computed
  // at its wait meets operands that were overwritten too soon. Seeds draw both.
  if (Draw() % 2 == 0) {
    // The groups stay, empty, for the waits to count.
    for (auto& group : thread.committed_products) {
      for (const auto& product : group) product();
      group.clear();
    }
  }
  MayYield();
}

void EmulatedBlock::WaitProducts(int groups) {
  Thread& thread = threads_[running_];
  if (!thread.open_products.empty()) Fail("waits for matrix products that it did not commit");
  while (static_cast<int>(thread.committed_products.size()) > groups) {
    for (const auto& product : thread.committed_products.front()) product();
    thread.committed_products.pop_front();
  }
}

}  // namespace epic::kernels::cuda
