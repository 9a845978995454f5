// Launches of small steps, replayed as CUDA graphs. Such a step launches the same kernels with the
// same arguments as other steps of its bucket of rows; what differs lies in memory that the kernels
// read. So a sequence of launches that comes again is recorded once and then launched as one.
//
//   graphs.Begin(rows <= kBucketRowsMax);                     // an operation that may be replayed
//   graphs.RunOrRecord(RmsNorm, {.rows = rows, .x = x, …});   // held back
//   graphs.RunOrRecord(BlockGemm, {…});
//   graphs.Flush();   // the first time: both run; the second: they are recorded; then: replayed
//
// A sequence is known by its kernels and the bytes of their arguments (argument_bytes.h). A launch
// is made of nothing else: a kernel is a plain function of (Stream, arguments), so it cannot bring
// anything along that the key lacks, and a recording serves exactly the launches that it holds.
//
// The first time runs without a recording, so that what comes once is not recorded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/argument_bytes.h"
#include "kernels/cuda/device_memory.h"

namespace epic::kernels::cuda {

// Used by one thread, the one that launches. At most one per heap.
class OperationGraphs {
 public:
  // If not `enabled`, every kernel is launched at once.
  OperationGraphs(DeviceHeap& heap, bool enabled);
  ~OperationGraphs();
  OperationGraphs(const OperationGraphs&) = delete;
  OperationGraphs& operator=(const OperationGraphs&) = delete;

  bool enabled() const { return enabled_; }

  // Begins an operation. `replayable`: its launches come again with the same arguments; they are
  // held back until Flush. Otherwise those held back go to the device now, and its own follow at
  // once.
  void Begin(bool replayable);
  // Whether launches are held back now.
  bool holding() const { return holding_; }

  // Launches `kernel` with `arguments`, now or at the next Flush. It may neither wait, upload nor
  // copy, and depends on its arguments alone: no global that changes.
  template <typename Arguments>
  void RunOrRecord(void (*kernel)(Stream, const Arguments&),
                   const std::type_identity_t<Arguments>& arguments) {
    if (!holding_) return kernel(heap_.runtime().stream(), arguments);
    // The key is the kernel's address and every byte of its arguments: nothing else reaches a
    // launch.
    AppendFields(reinterpret_cast<uintptr_t>(kernel), key_);
    AppendFields(arguments, key_);
    launches_.push_back({&Launch<Arguments>, reinterpret_cast<AnyKernel>(kernel), stored_.size()});
    const auto* bytes = reinterpret_cast<const std::byte*>(&arguments);
    stored_.insert(stored_.end(), bytes, bytes + sizeof(Arguments));
  }
  // Sends the launches held back to the device. It must come before anything else is given to the
  // runtime.
  void Flush();

  // How many sequences were recorded and replayed so far, for tests.
  int recorded() const { return recorded_; }
  int replayed() const { return replayed_; }

 private:
  using AnyKernel = void (*)();
  struct HeldLaunch {
    void (*launch)(AnyKernel kernel, Stream stream, const std::byte* arguments);
    AnyKernel kernel;
    // This is an offset and no pointer, since stored_ moves when it grows.
    size_t offset;  // of its arguments in stored_
  };

  // Arguments come from unaligned bytes.
  template <typename Arguments>
  static void Launch(AnyKernel kernel, Stream stream, const std::byte* arguments) {
    Arguments own;
    std::memcpy(&own, arguments, sizeof(Arguments));
    reinterpret_cast<void (*)(Stream, const Arguments&)>(kernel)(stream, own);
  }
  void LaunchHeld() const;
  void ForgetRecordings();

  DeviceHeap& heap_;
  const bool enabled_;
  // Whether the current operation may be replayed.
  bool holding_ = false;
  std::string key_;  // of the launches held back
  std::vector<HeldLaunch> launches_;
  std::vector<std::byte> stored_;
  // The sequences met so far. Null: the sequence has run, and no recording of it is kept.
  std::unordered_map<std::string, std::unique_ptr<DeviceRuntime::Recording>> recordings_;
  int recorded_ = 0;
  int replayed_ = 0;
};

}  // namespace epic::kernels::cuda
