#include "worker/kv/kv_pool.h"

#include "base/check.h"

namespace epic::worker {

KvPool::KvPool(kernels::Backend& backend, const kernels::KvLayout& layout, int layers,
               int page_count)
    : backend_(backend), layout_(layout), page_count_(page_count) {
  CHECK_GT(page_count, 0);
  // A slab for each layer, for a step works on one layer at a time.
  for (int layer = 0; layer < layers; ++layer) {
    memory_.push_back(
        backend.Allocate(layout.page_bytes() * page_count, kernels::MemoryUse::kOperations));
    slabs_.push_back(memory_.back()->data());
  }
}

kernels::KvView KvPool::view() const {
  return {.layout = layout_, .slabs = slabs_, .page_count = page_count_};
}

void KvPool::ZeroPage(int32_t page) {
  CHECK(page >= 0 && page < page_count_) << page << " of " << page_count_;
  // The step that first writes the page runs after this: a backend does its work in order.
  const int64_t bytes = layout_.page_bytes();
  for (std::byte* slab : slabs_) backend_.Zero(slab + page * bytes, bytes);
}

}  // namespace epic::worker
