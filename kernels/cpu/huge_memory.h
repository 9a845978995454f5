// Zeroed memory for weights and activations, 64-byte aligned. Large pieces are anonymous mappings
// that ask for huge pages: streams of weights then cross no page every 4 KB. A page belongs to the
// node of the thread that touches it first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "kernels/backend.h"

namespace epic::kernels {

class HugeMemory : public Memory {
 public:
  // Ends the process if there is not that much memory: a worker's memory plan is made before.
  explicit HugeMemory(int64_t bytes);
  ~HugeMemory() override;
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  std::byte* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  int64_t bytes_;
  int64_t mapped_bytes_ = 0;  // of the mapping; 0: the memory is of the heap
  void* mapping_ = nullptr;
  std::byte* data_ = nullptr;
};

// Memory for one purpose, reused from operation to operation: it grows to what is asked and keeps
// it. Each Get begins a new use: what the memory held is lost, and pointers of earlier Gets are
// dead. What is to outlive a Get is handed on as a pointer (AttentionStep), never asked for again.
class ReusableMemory {
 public:
  template <typename T>
  T* Get(int64_t count) {
    const int64_t bytes = count * int64_t{sizeof(T)};
    if (memory_ == nullptr || memory_->bytes() < bytes) {
      memory_.reset();
      memory_ = std::make_unique<HugeMemory>(bytes);
    }
    if (poisons_) std::memset(memory_->data(), 0xff, bytes);  // NaN as BF16 and as FP32
    return reinterpret_cast<T*>(memory_->data());
  }

  // For tests: every Get overwrites what the memory held, so that code which reads it back is
  // found. It must not be called while an operation runs.
  static void PoisonForTests(bool poisons) { poisons_ = poisons; }

 private:
  static inline bool poisons_ = false;

  std::unique_ptr<HugeMemory> memory_;
};

}  // namespace epic::kernels
