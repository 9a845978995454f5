// FP32 twins of BF16 rows, for the reference backend that does not round. Tensors are BF16 in every
// backend, so the exact values travel beside them, found by what the tensors hold. Two rows that
// round to the same BF16 values share the later one's twin: such rows are nearly equal anyway.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/number.h"
#include "kernels/tensor.h"

namespace epic::kernels {

// Rows that were written as BF16 are found again by their content, wherever they were copied to.
class ShadowRows {
 public:
  explicit ShadowRows(bool enabled) : enabled_(enabled) {}

  void Clear() { rows_.clear(); }

  // to[0 .. count) ← values, rounded to BF16.
  void Store(const std::vector<float>& values, BF16* to) {
    for (size_t i = 0; i < values.size(); ++i) to[i] = ToBF16(values[i]);
    if (enabled_) rows_[Key(to, values.size())] = values;
  }

  std::vector<float> Load(const BF16* from, size_t count) const {
    if (enabled_) {
      const auto found = rows_.find(Key(from, count));
      if (found != rows_.end() && found->second.size() == count) return found->second;
    }
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = ToFloat(from[i]);
    return values;
  }

 private:
  static uint64_t Key(const BF16* row, size_t count) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; ++i) hash = (hash ^ row[i].bits) * 0x100000001b3u;
    return hash;
  }

  bool enabled_;
  std::unordered_map<uint64_t, std::vector<float>> rows_;
};

}  // namespace epic::kernels
