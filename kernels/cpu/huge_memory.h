// Zeroed memory for weights and activations, 64-byte aligned. Large pieces are anonymous mappings
// that ask for huge pages: streams of weights then cross no page every 4 KB. A page belongs to the
// node of the thread that touches it first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/backend.h"

namespace epic::kernels {

class HugeMemory : public Memory {
 public:
  explicit HugeMemory(int64_t bytes);  // aborts if there is none
  ~HugeMemory() override;
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  std::byte* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  int64_t bytes_;
  int64_t mapped_bytes_ = 0;  // 0: from the heap
  void* mapping_ = nullptr;
  std::byte* data_ = nullptr;
};

// Grows to what is asked and keeps it; what it held is lost.
class ReusableMemory {
 public:
  template <typename T>
  T* Get(int64_t count) {
    const int64_t bytes = count * int64_t{sizeof(T)};
    if (memory_ == nullptr || memory_->bytes() < bytes) {
      memory_.reset();
      memory_ = std::make_unique<HugeMemory>(bytes);
    }
    return reinterpret_cast<T*>(memory_->data());
  }

 private:
  std::unique_ptr<HugeMemory> memory_;
};

}  // namespace epic::kernels
