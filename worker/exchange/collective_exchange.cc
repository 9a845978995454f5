#include "worker/exchange/collective_exchange.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::worker {

using kernels::Tensor;

namespace {

// The size of each of the four buffers, in rows.
struct BufferRows {
  int64_t sent_rows, received_rows, sent_answers, received_answers;
};

BufferRows RowsOf(const ExchangeShape& shape, int rows_max, int tile_rows, int rank_count) {
  const int64_t k = shape.experts_per_token;
  // This rank sends a row at most once to each rank, and gets one answer per pair.
  const int64_t own = std::min(tile_rows, rows_max);
  // Other ranks may have more rows in a step than this one ever has, so what comes from them is
  // sized by the tile and not by `rows_max`.
  return {.sent_rows = own * std::min<int64_t>(k, rank_count),
          .received_rows = int64_t{tile_rows} * rank_count,
          .sent_answers = tile_rows * k * rank_count,
          .received_answers = own * k};
}

}  // namespace

int64_t CollectiveExchange::BufferBytes(const ExchangeShape& shape, int rows_max, int rank_count) {
  const BufferRows rows = RowsOf(shape, rows_max, kTileRows, rank_count);
  return shape.row_bytes() *
         (rows.sent_rows + rows.received_rows + rows.sent_answers + rows.received_answers);
}

CollectiveExchange::CollectiveExchange(const ExchangeShape& shape, int rows_max,
                                       kernels::Backend& backend, ExpertSet& experts,
                                       cluster::Collective& collective, int tile_rows)
    : shape_(shape),
      rows_max_(rows_max),
      tile_rows_(tile_rows),
      experts_(experts),
      collective_(collective),
      rank_count_(collective.size()) {
  const BufferRows rows = RowsOf(shape, rows_max, tile_rows, rank_count_);
  // All are kHost: this class copies rows and answers itself, and answers in such memory are
  // written when Experts returns (kernels/backend.h), so they can be sent at once.
  sent_rows_ = backend.Allocate(rows.sent_rows * row_bytes(), kernels::MemoryUse::kHost);
  received_rows_ = backend.Allocate(rows.received_rows * row_bytes(), kernels::MemoryUse::kHost);
  sent_answers_ = backend.Allocate(rows.sent_answers * row_bytes(), kernels::MemoryUse::kHost);
  received_answers_ =
      backend.Allocate(rows.received_answers * row_bytes(), kernels::MemoryUse::kHost);
}

void CollectiveExchange::SetMap(std::shared_ptr<const cluster::ExpertMap> map) {
  // Ranks vote by the number alone. A later term goes on with the numbers of the one before.
  CHECK(maps_.empty() || maps_.back()->version.number < map->version.number);
  CHECK_EQ(static_cast<int>(map->replicas.size()), shape_.layer_count);
  maps_.push_back(std::move(map));
}

void CollectiveExchange::StartVote(const WaveVote& vote) {
  // After an error the epoch is over; the caller hears it from Outcome.
  if (!status_.ok()) return;
  CHECK(!voting_ && open_.empty() && !maps_.empty());
  CHECK_LE(vote.rows, rows_max_);
  // By their maximum: rows as they are; that all want to leave and the lowest map by negation.
  vote_[0] = vote.rows;
  vote_[1] = vote.ends ? -1 : 0;
  vote_[2] = -static_cast<int64_t>(maps_.back()->version.number);
  voting_ = collective_.StartAllReduce(cluster::Reduction::kMax, vote_);
}

absl::StatusOr<std::optional<Wave>> CollectiveExchange::Outcome() {
  RETURN_IF_ERROR(status_);
  CHECK(voting_.has_value());
  const absl::StatusOr<bool> done = collective_.Done(*voting_);
  // Not Fail: an operation ends in error only after the epoch has ended for all ranks.
  if (!done.ok()) return status_ = done.status();
  if (!*done) return std::nullopt;
  voting_.reset();
  const auto map = static_cast<uint64_t>(-vote_[2]);
  // Older maps are of no use once all ranks hold a newer one.
  while (maps_.size() > 1 && maps_.front()->version.number < map) maps_.pop_front();
  if (maps_.front()->version.number != map) {
    Fail(absl::InternalError(absl::StrCat("map ", map, " is the lowest of all ranks' newest, and ",
                                          maps_.front()->version.number, " the oldest held here")));
    return status_;
  }
  const int64_t rows = vote_[0];
  // The rank with the most rows decides; the others send empty tiles.
  tiles_ = static_cast<int>((rows + tile_rows_ - 1) / tile_rows_);
  if (rows > 0) return Wave{.kind = Wave::Kind::kStep, .tiles = tiles_};
  return Wave{.kind = vote_[1] < 0 ? Wave::Kind::kStop : Wave::Kind::kRest};
}

CollectiveExchange::Ticket CollectiveExchange::Begin(const model::ExpertDispatch& dispatch) {
  CHECK(open_.size() < 2) << "two tickets are open";
  // A dispatch between votes would start operations that no other rank expects.
  CHECK(tiles_ > 0 && !voting_) << "the ranks have agreed on no step";
  CHECK_LE(dispatch.rows.rows, std::min(tiles_ * tile_rows_, rows_max_));
  open_.push_back({.ticket = next_ticket_++, .dispatch = dispatch});
  if (open_.size() == 1) Start();
  return open_.back().ticket;
}

bool CollectiveExchange::Ready(Ticket ticket) {
  // Ready to fail: Finish tells why.
  if (!status_.ok()) return true;
  if (open_.front().ticket != ticket) return false;
  Drive();
  return !status_.ok() || stage_ == Stage::kComplete;
}

absl::Status CollectiveExchange::Finish(Ticket ticket, Tensor out) {
  if (!status_.ok()) {
    std::erase_if(open_, [&](const Open& open) { return open.ticket == ticket; });
    return status_;
  }
  CHECK(open_.front().ticket == ticket && stage_ == Stage::kComplete) << "ticket " << ticket;
  CHECK(out.data == open_.front().dispatch.out.data) << "not what Begin was told";
  open_.pop_front();
  stage_ = Stage::kIdle;
  // The second ticket begins only now, so that all ranks start the same operations in order.
  if (!open_.empty()) Start();
  return absl::OkStatus();
}

void CollectiveExchange::Start() {
  if (!status_.ok()) return;
  if (const absl::Status status = Route(); !status.ok()) return Fail(status);
  StartCounts();
}

absl::StatusOr<int> CollectiveExchange::HolderOf(int layer, int expert) const {
  const std::vector<int>& holders = maps_.front()->replicas[layer][expert];
  if (holders.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer, ": no rank holds expert ", expert));
  }
  const int rank = collective_.rank();
  // A row that stays at home costs no wire.
  if (std::ranges::binary_search(holders, rank)) return rank;
  // Each rank begins at another replica, so the load spreads without any state.
  return holders[rank % holders.size()];
}

absl::Status CollectiveExchange::Route() {
  Open& open = open_.front();
  const model::ExpertDispatch& dispatch = open.dispatch;
  open.parcels.resize(tiles_ * rank_count_);
  for (int64_t row = 0; row < dispatch.rows.rows; ++row) {
    const int64_t tile = row / tile_rows_;
    const int32_t* chosen = dispatch.experts.Row<int32_t>(row);
    for (int64_t j = 0; j < dispatch.experts.cols; ++j) {
      ASSIGN_OR_RETURN(const int holder, HolderOf(dispatch.layer, chosen[j]));
      Parcel& parcel = open.parcels[tile * rank_count_ + holder];
      // Choices of a row lie together, so a row travels once for all its experts there.
      if (parcel.rows.empty() || parcel.rows.back() != row) {
        parcel.rows.push_back(static_cast<int32_t>(row));
      }
      parcel.pairs.push_back({static_cast<int32_t>(parcel.rows.size()) - 1, chosen[j]});
      parcel.out_rows.push_back(row * dispatch.experts.cols + j);
    }
  }
  return absl::OkStatus();
}

void CollectiveExchange::Drive() {
  while (status_.ok() && stage_ != Stage::kComplete && OperationsDone()) {
    if (const absl::Status status = Next(); !status.ok()) Fail(status);
  }
}

absl::Status CollectiveExchange::Next() {
  switch (stage_) {
    case Stage::kCounts:
      RETURN_IF_ERROR(CheckCounts());
      StartRows();
      break;
    case Stage::kRows:
      RETURN_IF_ERROR(CheckPairs());
      StartAnswers();
      break;
    case Stage::kAnswers:
      TakeAnswers();
      // All ranks have the same number of tiles, full or empty.
      if (++tile_ < tiles_) {
        StartRows();
      } else {
        stage_ = Stage::kComplete;
      }
      break;
    case Stage::kIdle:
    case Stage::kComplete:
      CHECK(false) << "no exchange is under way";
  }
  return absl::OkStatus();
}

bool CollectiveExchange::OperationsDone() {
  while (!operations_.empty()) {
    const absl::StatusOr<bool> done = collective_.Done(operations_.back());
    if (!done.ok()) {
      // Another rank has ended the epoch, and has said why.
      status_ = done.status();
      return false;
    }
    if (!*done) return false;
    operations_.pop_back();
  }
  return true;
}

void CollectiveExchange::Fail(const absl::Status& status) {
  collective_.Abort(std::string(status.message()));
  // In the words that the other ranks hear. Where processes end with their epoch (MPI), Abort has
  // not returned.
  status_ = absl::AbortedError(
      absl::StrCat("rank ", collective_.rank(), ": ", std::string(status.message())));
}

void CollectiveExchange::StartAllToAll(const void* send, const std::vector<int64_t>& send_bytes,
                                       void* receive, const std::vector<int64_t>& receive_bytes) {
  std::vector<std::span<const std::byte>> from;
  std::vector<std::span<std::byte>> to;
  const auto* sent = static_cast<const std::byte*>(send);
  auto* received = static_cast<std::byte*>(receive);
  for (int rank = 0; rank < rank_count_; ++rank) {
    from.emplace_back(sent, send_bytes[rank]);
    to.emplace_back(received, receive_bytes[rank]);
    sent += send_bytes[rank];
    received += receive_bytes[rank];
  }
  // Started in the same order on all ranks; Done may be asked in any.
  operations_.push_back(collective_.StartAllToAll(from, to));
}

}  // namespace epic::worker
