// Memory of a device, with its owner and its use known by address: an operation that is given rows
// anywhere in the process (Backend::Experts) asks whether a kernel may touch them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/backend.h"
#include "kernels/cuda/device/runtime.h"
#include "kernels/mutex.h"

namespace epic::kernels::cuda {

class DeviceHeap;

// One allocation, freed with the object. Must be destroyed before its heap.
class DeviceMemory : public Memory {
 public:
  DeviceMemory(DeviceHeap& heap, int64_t bytes, MemoryUse use);
  ~DeviceMemory() override;
  DeviceMemory(const DeviceMemory&) = delete;

  std::byte* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  DeviceHeap& heap_;
  const int64_t bytes_;
  const MemoryUse use_;
  std::byte* data_;
};

// All memory of one runtime. Thread-safe but for BeforeScratchMoves, which the launching thread
// owns: weights are loaded by other threads meanwhile.
class DeviceHeap {
 public:
  explicit DeviceHeap(DeviceRuntime& runtime) : runtime_(runtime) {}

  DeviceRuntime& runtime() { return runtime_; }
  std::unique_ptr<DeviceMemory> Allocate(int64_t bytes, MemoryUse use) {
    return std::make_unique<DeviceMemory>(*this, bytes, use);
  }
  // The use of the memory that `address` lies in. Empty: the address is in no memory of this heap,
  // and no kernel may touch it.
  std::optional<MemoryUse> UseOf(const void* address) const;
  // Each Scratch makes `call` before it frees its memory for a larger piece, on the thread that
  // asks for it. An empty function takes the call back.
  void BeforeScratchMoves(std::function<void()> call) { before_scratch_moves_ = std::move(call); }

 private:
  friend class DeviceMemory;
  friend class Scratch;
  struct Range {
    int64_t bytes;
    MemoryUse use;
  };

  DeviceRuntime& runtime_;
  mutable Mutex mutex_;
  std::map<const std::byte*, Range> ranges_ KERNEL_GUARDED_BY(mutex_);  // by where they begin
  std::function<void()> before_scratch_moves_;
};

// Memory for one purpose of the operations, reused from call to call: what was in it is lost. It
// grows by powers of two (by an eighth above 64 MiB), so that it moves only a few times.
class Scratch {
 public:
  explicit Scratch(DeviceHeap& heap) : heap_(heap) {}

  template <typename T>
  T* Get(int64_t count) {
    return reinterpret_cast<T*>(GetBytes(count * int64_t{sizeof(T)}));
  }

 private:
  std::byte* GetBytes(int64_t bytes);

  DeviceHeap& heap_;
  std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace epic::kernels::cuda
