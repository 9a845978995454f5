#include "kernels/cuda/device_memory.h"

#include <algorithm>
#include <bit>

namespace epic::kernels::cuda {

DeviceMemory::DeviceMemory(DeviceHeap& heap, int64_t bytes, MemoryUse use)
    : heap_(heap),
      // At least one byte, since each address must belong to one allocation.
      bytes_(std::max<int64_t>(bytes, 1)),
      use_(use),
      data_(heap.runtime_.Allocate(bytes_, use)) {
  const MutexLock lock(heap.mutex_);
  heap.ranges_[data_] = {bytes_, use};
}

DeviceMemory::~DeviceMemory() {
  {
    // The range goes first: once the memory is free, another thread may be given the same address.
    const MutexLock lock(heap_.mutex_);
    heap_.ranges_.erase(data_);
  }
  heap_.runtime_.Free(data_, bytes_, use_);
}

std::optional<MemoryUse> DeviceHeap::UseOf(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  const MutexLock lock(mutex_);
  auto range = ranges_.upper_bound(at);
  if (range == ranges_.begin()) return std::nullopt;
  --range;
  if (at >= range->first + range->second.bytes) return std::nullopt;
  return range->second.use;
}

std::byte* Scratch::GetBytes(int64_t bytes) {
  if (memory_ == nullptr || memory_->bytes() < bytes) {
    // Launches held back and recordings name the old address; they must be done with before it
    // goes.
    if (memory_ != nullptr && heap_.before_scratch_moves_) heap_.before_scratch_moves_();
    // The old memory goes before the larger is allocated: the memory plan has room for one of them.
    memory_.reset();
    const auto room = std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(bytes, 4096)));
    // Above 64 MiB a power of two wastes too much.
    const bool large = bytes > int64_t{64} << 20;
    memory_ = heap_.Allocate(large ? bytes + bytes / 8 : static_cast<int64_t>(room),
                             MemoryUse::kOperations);
  }
  return memory_->data();
}

}  // namespace epic::kernels::cuda
