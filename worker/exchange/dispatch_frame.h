// The content of the exchange's frames (docs/exchange.md), and the shape and limits that they keep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "cluster/transport/transport.h"

namespace epic::worker {

// The facts about the model that an exchange needs.
struct ExchangeShape {
  int layer_count = 0;
  int expert_count = 0;  // in each layer with experts
  int experts_per_token = 0;
  int hidden = 0;
  cluster::WeightsId weights = cluster::WeightsId::kFirst;

  int64_t row_bytes() const { return int64_t{hidden} * 2; }
};

// Equal on all ranks of a world.
struct ExchangeLimits {
  int tile_rows_max = 512;  // rows of a frame, and rows of a commit
  // The answers of a frame fit in this: with two tiles a peer under way, below socket buffers.
  int64_t answer_bytes_max = int64_t{4} << 20;
  // Frames under way per peer and direction: the credits that a connection starts with.
  int tiles_in_flight_max = 2;
  absl::Duration prompt_patience = absl::Milliseconds(50);

  // The most pairs of a frame.
  int64_t pairs_max(const ExchangeShape& shape) const;
};

// One (row, expert) of a frame.
struct FramePair {
  uint16_t row = 0;
  uint16_t expert = 0;
};

// The payload of a dispatch, as views into it.
struct DispatchFrame {
  std::span<const FramePair> pairs;
  int row_count = 0;
  const std::byte* rows = nullptr;  // BF16 [row_count, hidden]
};

int64_t PayloadBytesMax(const ExchangeShape& shape, const ExchangeLimits& limits);
// Writes the part of a payload before the rows. It is padded, so that the rows are aligned to 64
// bytes if the payload is.
void WriteDispatchHead(std::span<const FramePair> pairs, int row_count,
                       std::vector<std::byte>& head);
// Returns none if any number is out of range or out of order, or if the length does not fit.
// `payload` is aligned to 4 bytes.
std::optional<DispatchFrame> ReadDispatch(const ExchangeShape& shape, const ExchangeLimits& limits,
                                          cluster::Bytes payload);

}  // namespace epic::worker
