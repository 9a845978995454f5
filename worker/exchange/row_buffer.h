// RowBuffer: memory for rows, aligned to 64 bytes as kernels want them, that grows and is reused.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace epic::worker {

class RowBuffer {
 public:
  // At least `bytes`; what was in it is lost if it grows.
  std::byte* Reserve(int64_t bytes) {
    if (bytes > capacity_) {
      capacity_ = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bytes)));
      data_.reset(new (kAlignment) std::byte[capacity_]);
    }
    return data_.get();
  }
  std::byte* data() const { return data_.get(); }
  int64_t capacity() const { return capacity_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* data) const { operator delete[](data, kAlignment); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace epic::worker
