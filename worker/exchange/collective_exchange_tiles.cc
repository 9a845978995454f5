// The part of CollectiveExchange that carries the tiles of one exchange: counts, rows, answers.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/exchange/collective_exchange.h"

namespace epic::worker {

using kernels::DType;

void CollectiveExchange::StartCounts() {
  CHECK(stage_ == Stage::kIdle) << "an exchange is under way";
  // The counts of all tiles travel in one operation, so a layer waits for counts once. They are
  // members, since the operation uses them until it is done.
  sent_counts_.assign(rank_count_ * tiles_, {});
  received_counts_.assign(rank_count_ * tiles_, {});
  for (int rank = 0; rank < rank_count_; ++rank) {
    for (int tile = 0; tile < tiles_; ++tile) {
      const Parcel& parcel = open_.front().parcels[tile * rank_count_ + rank];
      sent_counts_[rank * tiles_ + tile] = {static_cast<int32_t>(parcel.rows.size()),
                                            static_cast<int32_t>(parcel.pairs.size())};
    }
  }
  const std::vector<int64_t> bytes(rank_count_, tiles_ * int64_t{sizeof(Counts)});
  StartAllToAll(sent_counts_.data(), bytes, received_counts_.data(), bytes);
  stage_ = Stage::kCounts;
  tile_ = 0;
}

absl::Status CollectiveExchange::CheckCounts() const {
  for (int rank = 0; rank < rank_count_; ++rank) {
    for (int tile = 0; tile < tiles_; ++tile) {
      const Counts& counts = received_counts_[rank * tiles_ + tile];
      // The buffers have room for a full tile of each rank. A count beyond that would let a rank
      // write behind them.
      const bool fits = counts.rows >= 0 && counts.rows <= tile_rows_ && counts.pairs >= 0 &&
                        counts.pairs <= int64_t{counts.rows} * shape_.experts_per_token;
      if (fits) continue;
      return absl::DataLossError(
          absl::StrCat("layer ", open_.front().dispatch.layer, ": rank ", rank, " announces ",
                       counts.rows, " rows with ", counts.pairs, " experts; at most ", tile_rows_,
                       " rows with ", shape_.experts_per_token, " each are allowed"));
    }
  }
  return absl::OkStatus();
}

void CollectiveExchange::StartRows() {
  std::vector<int64_t> sent_row_bytes, received_row_bytes, sent_pair_bytes, received_pair_bytes;
  sent_pairs_.clear();
  CHECK(tile_ >= 0 && tile_ < tiles_) << "tile " << tile_ << " of " << tiles_;
  // Rows are copied because a span of an all-to-all has no gaps, and the rows of a parcel do.
  std::byte* to = sent_rows_->data();
  int64_t received_pairs = 0;
  for (int rank = 0; rank < rank_count_; ++rank) {
    const Parcel& parcel = SentTo(rank);
    // In the order of ranks, as the spans of an all-to-all lie behind each other.
    for (const int32_t row : parcel.rows) {
      std::memcpy(to, open_.front().dispatch.rows.Row<kernels::BF16>(row), row_bytes());
      to += row_bytes();
    }
    sent_pairs_.insert(sent_pairs_.end(), parcel.pairs.begin(), parcel.pairs.end());
    const Counts& received = ReceivedFrom(rank);
    received_pairs += received.pairs;
    sent_row_bytes.push_back(parcel.rows.size() * row_bytes());
    received_row_bytes.push_back(received.rows * row_bytes());
    sent_pair_bytes.push_back(parcel.pairs.size() * sizeof(kernels::ExpertRow));
    received_pair_bytes.push_back(received.pairs * sizeof(kernels::ExpertRow));
  }
  // Before the operation starts: it keeps the addresses.
  received_pairs_.resize(received_pairs);
  StartAllToAll(sent_pairs_.data(), sent_pair_bytes, received_pairs_.data(), received_pair_bytes);
  StartAllToAll(sent_rows_->data(), sent_row_bytes, received_rows_->data(), received_row_bytes);
  stage_ = Stage::kRows;
}

absl::Status CollectiveExchange::CheckPairs() {
  const int layer = open_.front().dispatch.layer;
  auto pair = received_pairs_.begin();
  int32_t first_row = 0;
  for (int rank = 0; rank < rank_count_; ++rank) {
    const Counts& counts = ReceivedFrom(rank);
    for (int32_t i = 0; i < counts.pairs; ++i, ++pair) {
      // An index from another rank must never be used unchecked.
      if (pair->row < 0 || pair->row >= counts.rows) {
        return absl::DataLossError(absl::StrCat("layer ", layer, ": rank ", rank, " names row ",
                                                pair->row, " of ", counts.rows));
      }
      const bool known = pair->expert >= 0 && pair->expert < shape_.expert_count;
      // The sender chose by the map that all ranks agreed on, so such a pair means that they
      // disagree.
      if (!known || !experts_.Holds(layer, pair->expert)) {
        return absl::FailedPreconditionError(absl::StrCat("layer ", layer, ": rank ", rank,
                                                          " wants expert ", pair->expert,
                                                          ", which is not held here"));
      }
      // Rows of all ranks lie in one buffer, and are computed in one call.
      pair->row += first_row;
    }
    first_row += counts.rows;
  }
  return absl::OkStatus();
}

void CollectiveExchange::StartAnswers() {
  std::vector<int64_t> sent_bytes, received_bytes;
  int64_t rows = 0;
  for (int rank = 0; rank < rank_count_; ++rank) {
    rows += ReceivedFrom(rank).rows;
    // Both ends know how many answers travel from the counts of pairs, so none are told again.
    sent_bytes.push_back(ReceivedFrom(rank).pairs * row_bytes());
    received_bytes.push_back(SentTo(rank).pairs.size() * row_bytes());
  }
  // An answer depends on row and expert alone, so one call for all ranks gives the same bits.
  if (!received_pairs_.empty()) {
    const auto pairs = static_cast<int64_t>(received_pairs_.size());
    experts_.Compute(open_.front().dispatch.layer,
                     {DType::kBF16, rows, shape_.hidden, received_rows_->data()}, received_pairs_,
                     {DType::kBF16, pairs, shape_.hidden, sent_answers_->data()});
  }
  StartAllToAll(sent_answers_->data(), sent_bytes, received_answers_->data(), received_bytes);
  stage_ = Stage::kAnswers;
}

void CollectiveExchange::TakeAnswers() {
  // Each pair of the dispatch is in one parcel, so each place of `out` is written once, whatever it
  // held before.
  const std::byte* answer = received_answers_->data();
  auto* out = open_.front().dispatch.out.As<std::byte>();
  for (int rank = 0; rank < rank_count_; ++rank) {
    for (const int64_t row : SentTo(rank).out_rows) {
      std::memcpy(out + row * row_bytes(), answer, row_bytes());
      answer += row_bytes();
    }
  }
}

}  // namespace epic::worker
