// DeviceRuntime: what a backend asks of a device beside its kernels: memory, copies, order, and
// waiting. All that it is given happens in order, on one stream. Two implementations:
//
//   sm90_runtime.cu       the CUDA runtime, on one card
//   emulated_runtime.cc   the host: nothing happens before Wait, each launch has a seed of its own,
//                         and memory of kOperations cannot be touched from outside (SIGSEGV)
//
// A fault of the device ends the process; of the emulated one it is a DeviceError from Wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/device/launch.h"

namespace epic::kernels::cuda {

// Launches come from one thread at a time; the rest is thread-safe.
class DeviceRuntime {
 public:
  // Null, with the reason in `error`, where there is no such card. `ordinal`: which of those that
  // this process sees.
  static std::unique_ptr<DeviceRuntime> Open(int ordinal, std::string& error);

  virtual ~DeviceRuntime() = default;

  // The family's name in the numeric profile: it stands for the bits of results.
  virtual const char* family() const = 0;
  // For people.
  virtual std::string name() const = 0;
  virtual int sm_count() const = 0;
  virtual int64_t free_bytes() const = 0;
  // The size of the products by which tiles are tested: as large as time allows, K a multiple of
  // 16.
  struct ProblemSize {
    int rows, n, k;
  };
  virtual ProblemSize tile_test() const = 0;

  // The stream for launches; while the launching thread records, the recording's.
  virtual Stream stream() = 0;

  // Launches with the parameters that they had when they were recorded; Launch may be called as
  // often as wanted.
  class Recording {
   public:
    virtual ~Recording() = default;
    virtual void Launch() = 0;
  };
  // What the launching thread launches in between is recorded and not run; it asks nothing else of
  // the runtime. What other threads give is as ever.
  virtual void BeginRecording() = 0;
  virtual std::unique_ptr<Recording> EndRecording() = 0;

  // Zeroed, aligned to 256 bytes. Free first waits for what was given.
  virtual std::byte* Allocate(int64_t bytes, MemoryUse use) = 0;
  virtual void Free(std::byte* data, int64_t bytes, MemoryUse use) = 0;

  // `from` is ordinary memory of the host and is read within the call.
  virtual void Upload(void* to, const void* from, int64_t bytes) = 0;
  // Both take any memory of this process.
  virtual void Copy(void* to, const void* from, int64_t bytes) = 0;
  virtual void Zero(void* at, int64_t bytes) = 0;
  virtual void Wait() = 0;
};

}  // namespace epic::kernels::cuda
