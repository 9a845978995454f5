#include "kernels/cpu/huge_memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "kernels/check.h"

namespace epic::kernels {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
// Smaller pieces would waste most of a huge page.
constexpr int64_t kSmallBytes = int64_t{1} << 20;

}  // namespace

HugeMemory::HugeMemory(int64_t bytes) : bytes_(bytes) {
  KERNEL_CHECK_GE(bytes, 0);
  if (bytes < kSmallBytes) {
    mapping_ = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
    KERNEL_CHECK(mapping_ != nullptr, "out of memory: %ld bytes", bytes);
    // A fresh mapping is zeroed too, so callers find the same either way.
    std::memset(mapping_, 0, bytes);
    data_ = static_cast<std::byte*>(mapping_);
    return;
  }
  // A huge page must begin at a multiple of its size, which a mapping need not: one more is mapped.
  mapped_bytes_ = (bytes + 2 * kHugePage - 1) / kHugePage * kHugePage;
  mapping_ =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  KERNEL_CHECK(mapping_ != MAP_FAILED, "out of memory: %ld bytes", bytes);
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  data_ = reinterpret_cast<std::byte*>((address + kHugePage - 1) / kHugePage * kHugePage);
  // A wish: where huge pages are off, memory is only slower.
  madvise(data_, bytes, MADV_HUGEPAGE);
}

HugeMemory::~HugeMemory() {
  if (mapped_bytes_ > 0) {
    munmap(mapping_, mapped_bytes_);
  } else {
    std::free(mapping_);
  }
}

}  // namespace epic::kernels
