#include "kernels/cuda/device/shared_memory.h"

#include <cstring>

namespace epic::kernels::cuda {
namespace {

// One word per byte tells its writer: none, the copy engine, or a thread with the number of fences
// it had made, as kFirstTag + fences · kThreadsMax + thread.
constexpr uint32_t kUnwritten = 0;
constexpr uint32_t kAsync = 1;
constexpr uint32_t kFirstTag = 2;
constexpr uint32_t kThreadsMax = 1024;

}  // namespace

SharedMemory::SharedMemory(int bytes, int threads)
    : size_(bytes), bytes_(new std::byte[bytes]), writers_(bytes, kUnwritten), fences_(threads) {
  // All ones are NaN in FP32, BF16 and E4M3, so memory that no check covers spoils a result.
  std::memset(bytes_.get(), 0xff, bytes);
}

void SharedMemory::Check(uint32_t address, int bytes, const char* what) const {
  // Addresses are unsigned: one below the base would wrap round to a large offset.
  if (address < kBase || address - kBase + bytes > static_cast<uint32_t>(size_)) {
    throw DeviceError(std::string(what) + " of " + std::to_string(bytes) + " bytes at " +
                      std::to_string(static_cast<int64_t>(address) - kBase) +
                      " is outside the block's " + std::to_string(size_) + " shared bytes");
  }
}

void SharedMemory::Read(uint32_t address, void* to, int bytes) const {
  Check(address, bytes, "read");
  for (int i = 0; i < bytes; ++i) {
    if (writers_[address - kBase + i] == kUnwritten) {
      throw DeviceError("read of shared byte " + std::to_string(address - kBase + i) +
                        ", which nobody has written");
    }
  }
  std::memcpy(to, bytes_.get() + (address - kBase), bytes);
}

void SharedMemory::Write(uint32_t address, const void* from, int bytes, int thread) {
  Check(address, bytes, "write");
  std::memcpy(bytes_.get() + (address - kBase), from, bytes);
  const uint32_t tag = kFirstTag + fences_[thread] * kThreadsMax + static_cast<uint32_t>(thread);
  for (int i = 0; i < bytes; ++i) writers_[address - kBase + i] = tag;
}

void SharedMemory::AsyncRead(uint32_t address, void* to, int bytes) const {
  Read(address, to, bytes);
  for (int i = 0; i < bytes; ++i) {
    const uint32_t tag = writers_[address - kBase + i];
    // The copy engine writes through the same proxy, so its bytes need no fence.
    if (tag == kAsync) continue;
    const uint32_t thread = (tag - kFirstTag) % kThreadsMax;
    // The writer must have fenced since: then its count has passed the one in the tag.
    if (fences_[thread] <= (tag - kFirstTag) / kThreadsMax) {
      throw DeviceError("asynchronous read of shared byte " + std::to_string(address - kBase + i) +
                        ", which thread " + std::to_string(thread) +
                        " wrote without a fence after it");
    }
  }
}

void SharedMemory::AsyncWrite(uint32_t address, const void* from, int bytes) {
  Check(address, bytes, "asynchronous write");
  std::memcpy(bytes_.get() + (address - kBase), from, bytes);
  for (int i = 0; i < bytes; ++i) writers_[address - kBase + i] = kAsync;
}

}  // namespace epic::kernels::cuda
