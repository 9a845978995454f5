#include "kernels/cpu/huge_memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace epic::kernels {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kSmallBytes = int64_t{1} << 20;

[[noreturn]] void OutOfMemory(int64_t bytes) {
  std::fprintf(stderr, "out of memory: %lld bytes for weights or activations\n",
               static_cast<long long>(bytes));
  std::abort();
}

}  // namespace

HugeMemory::HugeMemory(int64_t bytes) : bytes_(bytes) {
  if (bytes < kSmallBytes) {
    mapping_ = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (mapping_ == nullptr) OutOfMemory(bytes);
    std::memset(mapping_, 0, bytes);
    data_ = static_cast<std::byte*>(mapping_);
    return;
  }
  mapped_bytes_ = (bytes + 2 * kHugePage - 1) / kHugePage * kHugePage;
  mapping_ =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) OutOfMemory(bytes);
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  data_ = reinterpret_cast<std::byte*>((address + kHugePage - 1) / kHugePage * kHugePage);
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
