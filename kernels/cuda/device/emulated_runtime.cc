#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/device/runtime.h"
#include "kernels/flush_denormals.h"
#include "kernels/mutex.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kSmCount = 3;  // few, so that blocks walk on
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kAlignment = 256;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Pages of exactly one allocation, which ends where they do. The page behind them may not be
// touched.
struct Pages {
  std::byte* begin;
  int64_t bytes;

  bool operator<(const Pages& other) const { return begin < other.begin; }
  void Protect(bool accessible) const {
    const int access = accessible ? PROT_READ | PROT_WRITE : PROT_NONE;
    KERNEL_CHECK(mprotect(begin, bytes, access) == 0, "%ld bytes", bytes);
  }
  static Pages Of(const std::byte* data, int64_t bytes) {
    const int64_t total = RoundUp(RoundUp(bytes, kAlignment), kPageBytes);
    const std::byte* end = data + RoundUp(bytes, kAlignment);
    return {const_cast<std::byte*>(end - total), total};
  }
};

using Work = std::function<void(uint64_t seed)>;

// This stands for a CUDA graph: the launches with the parameters they had when they were recorded.
class RecordedWork : public DeviceRuntime::Recording, public LaunchQueue {
 public:
  explicit RecordedWork(LaunchQueue& to) : to_(to) {}
  void Push(Work work) override { recorded_.push_back(std::move(work)); }
  void Launch() override {
    for (const Work& work : recorded_) to_.Push(work);
  }

 private:
  LaunchQueue& to_;
  std::vector<Work> recorded_;
};

class EmulatedRuntime : public DeviceRuntime, public LaunchQueue {
 public:
  const char* family() const override { return "sm90-emulated"; }
  std::string name() const override { return "emulated sm_90"; }
  int sm_count() const override { return kSmCount; }
  int64_t free_bytes() const override { return int64_t{1} << 32; }
  ProblemSize tile_test() const override { return {.rows = 66, .n = 72, .k = 144}; }
  Stream stream() override {
    // A recording takes the launches in place of the queue, and runs none of them.
    return {.queue = recording_ != nullptr ? static_cast<LaunchQueue*>(recording_.get()) : this};
  }
  void BeginRecording() override {
    CheckNotRecording();
    recording_ = std::make_unique<RecordedWork>(*this);
    recorder_ = std::this_thread::get_id();
  }
  std::unique_ptr<Recording> EndRecording() override {
    recorder_ = std::thread::id();
    return std::move(recording_);
  }

  std::byte* Allocate(int64_t bytes, MemoryUse use) override {
    CheckNotRecording();
    const int64_t total = RoundUp(RoundUp(bytes, kAlignment), kPageBytes);
    // Fresh pages are zeros, as Allocate promises. One page more becomes the guard behind them.
    void* pages = mmap(nullptr, total + kPageBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KERNEL_CHECK(pages != MAP_FAILED, "%ld bytes", bytes);
    auto* begin = static_cast<std::byte*>(pages);
    Pages{begin + total, kPageBytes}.Protect(false);
    if (use == MemoryUse::kOperations) {
      const MutexLock lock(mutex_);
      const Pages own{begin, total};
      own.Protect(false);
      own_.insert(own);
    }
    return begin + total - RoundUp(bytes, kAlignment);
  }

  void Free(std::byte* data, int64_t bytes, MemoryUse use) override {
    // Queued work may still name this memory.
    Wait();
    const Pages pages = Pages::Of(data, bytes);
    const MutexLock lock(mutex_);
    own_.erase(pages);
    munmap(pages.begin, pages.bytes + kPageBytes);
  }

  void Upload(void* to, const void* from, int64_t bytes) override {
    const auto* first = static_cast<const std::byte*>(from);
    // The bytes are taken now, since the caller may change them before Wait.
    Push([to, copy = std::vector<std::byte>(first, first + bytes)](uint64_t) {
      if (!copy.empty()) std::memcpy(to, copy.data(), copy.size());
    });
  }
  void Copy(void* to, const void* from, int64_t bytes) override {
    Push([=](uint64_t) { std::memcpy(to, from, bytes); });
  }
  void Zero(void* at, int64_t bytes) override {
    Push([=](uint64_t) { std::memset(at, 0, bytes); });
  }

  void Push(Work work) override {
    CheckNotRecording();
    const MutexLock lock(mutex_);
    queue_.push_back(std::move(work));
  }

  // Memory of kOperations is open only while work runs: host code that touches it at any other time
  // gets a SIGSEGV.
  void Wait() override {
    CheckNotRecording();
    const MutexLock lock(mutex_);
    if (queue_.empty()) return;
    // Kernels run on the thread that waits, and denormals are zero wherever rows are computed.
    const ScopedFlushDenormals flush;
    for (const Pages& pages : own_) pages.Protect(true);
    const std::vector<Work> queue = std::exchange(queue_, {});
    // Each work gets another seed, so that the same launch meets another order every time.
    for (const Work& work : queue) work(seed_++);
    for (const Pages& pages : own_) pages.Protect(false);
  }

 private:
  // Only the recording thread must ask nothing else; others may load weights meanwhile.
  void CheckNotRecording() const { KERNEL_CHECK(recorder_.load() != std::this_thread::get_id()); }

  Mutex mutex_;
  std::set<Pages> own_ KERNEL_GUARDED_BY(mutex_);  // of kOperations
  std::vector<Work> queue_ KERNEL_GUARDED_BY(mutex_);
  uint64_t seed_ KERNEL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<RecordedWork> recording_;  // of the launching thread
  std::atomic<std::thread::id> recorder_;
};

}  // namespace

std::unique_ptr<DeviceRuntime> DeviceRuntime::Open(int ordinal, std::string& error) {
  if (ordinal != 0) {
    error = "there is no card " + std::to_string(ordinal) + ", there is 1";
    return nullptr;
  }
  return std::make_unique<EmulatedRuntime>();
}

}  // namespace epic::kernels::cuda
