// Memory of a device, with its owner and its use known by address.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "kernels/backend.h"
#include "kernels/cuda/device/runtime.h"
#include "kernels/mutex.h"

namespace epic::kernels::cuda {

class DeviceHeap;

// Outlived by its heap.
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

// Thread-safe.
class DeviceHeap {
 public:
  explicit DeviceHeap(DeviceRuntime& runtime) : runtime_(runtime) {}

  DeviceRuntime& runtime() { return runtime_; }
  std::unique_ptr<DeviceMemory> Allocate(int64_t bytes, MemoryUse use) {
    return std::make_unique<DeviceMemory>(*this, bytes, use);
  }
  // Of the memory that `address` lies in; none: it is nobody's here, and no kernel may touch it.
  std::optional<MemoryUse> UseOf(const void* address) const;
  // How often any Scratch has got other memory.
  int64_t scratch_moves() const { return scratch_moves_; }

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
  std::atomic<int64_t> scratch_moves_ = 0;
};

// Memory for one purpose of the operations, reused from call to call: what was in it is lost.
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
