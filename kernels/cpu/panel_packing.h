// What packing has in common in all families: a weight is cut into panels of 16 outputs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/tensor.h"

namespace epic::kernels {

inline constexpr int64_t kPanelOutputs = 16;

// pack(first output, where the panel starts), for panels [begin, end) of the matrix that starts at
// `packed`. A panel is zero before it is packed.
template <class Pack>
void PackPanels(int64_t begin, int64_t end, int64_t panel_bytes, std::byte* packed,
                const Pack& pack) {
  for (int64_t p = begin; p < end; ++p) {
    std::memset(packed + p * panel_bytes, 0, panel_bytes);
    pack(p * kPanelOutputs, packed + p * panel_bytes);
  }
}

// body(output, its place in the panel) for the outputs that a panel has.
template <class Body>
void ForOutputs(const SourceMatrix& source, int64_t first, const Body& body) {
  const int64_t end = std::min(source.rows, first + kPanelOutputs);
  for (int64_t n = first; n < end; ++n) body(n, n - first);
}

// Pairs of inputs, [ceil(K/2)][16 outputs][2 inputs], rounded to BF16.
void PackBF16Panel(const SourceMatrix& source, int64_t first, std::byte* to);

}  // namespace epic::kernels
