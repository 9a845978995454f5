#include "worker/exchange/dispatch_frame.h"

#include <algorithm>
#include <cstring>

namespace epic::worker {
namespace {

constexpr int64_t kAlignment = 64;

struct Counts {
  uint32_t rows = 0;
  uint32_t pairs = 0;
};

// In 64 bits: counts from the wire are multiplied before they are known to be small.
int64_t HeadBytes(int64_t pairs) {
  const int64_t bytes = int64_t{sizeof(Counts)} + pairs * int64_t{sizeof(FramePair)};
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Rows come in order from 0 and none is left out; the experts of a row ascend. So no pair comes
// twice, and every row that was sent is used.
bool InOrder(const ExchangeShape& shape, std::span<const FramePair> pairs, int row_count) {
  int row = -1;
  int expert = -1;
  for (const FramePair& pair : pairs) {
    if (pair.row == row + 1) {
      row = pair.row;
    } else if (pair.row != row || pair.expert <= expert) {
      return false;
    }
    expert = pair.expert;
    if (expert >= shape.expert_count) return false;
  }
  return row == row_count - 1;
}

}  // namespace

int64_t ExchangeLimits::pairs_max(const ExchangeShape& shape) const {
  // At least one pair, however long a row is: else the dispatch could never be sent.
  return std::clamp<int64_t>(answer_bytes_max / shape.row_bytes(), 1,
                             int64_t{tile_rows_max} * shape.experts_per_token);
}

int64_t PayloadBytesMax(const ExchangeShape& shape, const ExchangeLimits& limits) {
  const int64_t pairs = limits.pairs_max(shape);
  // Each row has a pair, so a frame has no more rows than pairs.
  return HeadBytes(pairs) + std::min<int64_t>(pairs, limits.tile_rows_max) * shape.row_bytes();
}

void WriteDispatchHead(std::span<const FramePair> pairs, int row_count,
                       std::vector<std::byte>& head) {
  head.assign(HeadBytes(static_cast<int64_t>(pairs.size())), std::byte{0});
  const Counts counts{static_cast<uint32_t>(row_count), static_cast<uint32_t>(pairs.size())};
  // Padded, so that the rows behind the head are aligned where the payload is.
  std::memcpy(head.data(), &counts, sizeof counts);
  std::memcpy(head.data() + sizeof counts, pairs.data(), pairs.size_bytes());
}

std::optional<DispatchFrame> ReadDispatch(const ExchangeShape& shape, const ExchangeLimits& limits,
                                          cluster::Bytes payload) {
  Counts counts;
  if (payload.size() < sizeof counts) return std::nullopt;
  std::memcpy(&counts, payload.data(), sizeof counts);
  if (counts.rows == 0 || counts.rows > static_cast<uint32_t>(limits.tile_rows_max) ||
      counts.pairs < counts.rows || counts.pairs > limits.pairs_max(shape)) {
    return std::nullopt;
  }
  const int64_t head_bytes = HeadBytes(counts.pairs);
  // After this, no pair and no row lies behind the end of the payload.
  if (static_cast<int64_t>(payload.size()) != head_bytes + counts.rows * shape.row_bytes()) {
    return std::nullopt;
  }
  // The payload is this rank's own copy, so its numbers stay as they are checked.
  DispatchFrame frame;
  frame.pairs = {reinterpret_cast<const FramePair*>(payload.data() + sizeof counts), counts.pairs};
  frame.row_count = static_cast<int>(counts.rows);
  frame.rows = payload.data() + head_bytes;
  if (!InOrder(shape, frame.pairs, frame.row_count)) return std::nullopt;
  return frame;
}

}  // namespace epic::worker
