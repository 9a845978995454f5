// KvPool: the bytes of the paged KV cache, one slab of pages per layer in the backend's memory.
// Who holds which page is PageLedger's.
#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/kv_view.h"

namespace epic::worker {

class KvPool {
 public:
  // Bytes that one page takes over all layers.
  static int64_t PageBytes(const kernels::KvLayout& layout, int layers) {
    return layout.page_bytes() * layers;
  }

  // The backend outlives the pool.
  KvPool(kernels::Backend& backend, const kernels::KvLayout& layout, int layers, int page_count);
  KvPool(const KvPool&) = delete;

  // Valid while the pool lives.
  kernels::KvView view() const;
  // Zeroes a page in every layer: whoever leases it finds no NaN of an earlier owner.
  void ZeroPage(int32_t page);

 private:
  kernels::Backend& backend_;
  kernels::KvLayout layout_;
  int page_count_;
  std::vector<std::unique_ptr<kernels::Memory>> memory_;  // [layers]
  std::vector<std::byte*> slabs_;                         // [layers]
};

}  // namespace epic::worker
