// CollectiveExchange: the ExpertExchange of ranks that step together, over a Collective
// (protocol.md §7).
//
// A *wave* is a row of steps that all ranks make together, as long as any has work. Before each
// step the ranks vote: one small all-reduce fixes for all whether there is a step, into how many
// tiles of its rows its exchanges are cut, and which map says where experts are. Then every rank
// runs the same exchanges: the one with rows as a model::Step, the one without as a
// model::IdleStep.
//
//   exchange.SetMap(map);
//   exchange.StartVote({.rows = plan.rows()});
//   … until exchange.Outcome() tells a Wave …
//   if (wave.kind == Wave::Kind::kStep) … a Step or an IdleStep, driven to its end …
//
// An exchange (one layer) is three kinds of operations: all-to-all of the counts of all tiles; per
// tile the rows, each once per rank that holds one of its experts, with their (row, expert) pairs;
// then, computed by the rank that holds the expert, one answer per pair. Answers are never summed
// on the way and a row's answer depends on row and expert alone (kernels/backend.h), so the owner
// gets the bits that LocalExchange would have given it.
//
// Any error ends the epoch for all ranks (Collective::Abort); a step that failed is run again, over
// a new exchange of the next epoch: what it wrote into KV pages is written again alike.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "cluster/placement/expert_map.h"
#include "cluster/transport/collective.h"
#include "kernels/backend.h"
#include "model/expert_exchange.h"
#include "worker/exchange/dispatch_frame.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

// The vote of one rank before a step.
struct WaveVote {
  int rows = 0;       // of the step that it wants to make; 0: it has no work
  bool ends = false;  // it wants to leave: it will have no work any more
};

// The outcome of a vote, which is the same on all ranks.
struct Wave {
  enum class Kind : uint8_t {
    kStep,  // a rank has work: all make a step
    kRest,  // none has work
    kStop,  // none has work and all want to leave: this was the last vote
  };
  Kind kind = Kind::kRest;
  int tiles = 0;  // of each exchange of the step
};

// One thread, the rank's loop. Rows, answers and buffers are memory that both the backend and the
// host can address.
class CollectiveExchange : public model::ExpertExchange {
 public:
  // Rows of a tile on each rank; the same on all.
  static constexpr int kTileRows = 512;

  // The memory that the buffers take for steps of up to `rows_max` rows in a world of `rank_count`:
  // room for the case that all ranks want all experts of this one.
  static int64_t BufferBytes(const ExchangeShape& shape, int rows_max, int rank_count);

  // All outlive the exchange. `experts` holds what the maps give to collective.rank(): ranks of a
  // map are numbered as the epoch's.
  CollectiveExchange(const ExchangeShape& shape, int rows_max, kernels::Backend& backend,
                     ExpertSet& experts, cluster::Collective& collective,
                     int tile_rows = kTileRows);

  // A newer map than any before, by its number. It is used once all ranks hold it: the coordinator
  // gives every rank the same maps in the same order. The first comes before the first vote.
  void SetMap(std::shared_ptr<const cluster::ExpertMap> map);
  // The number of the map in use, which all ranks agreed on in the last vote.
  uint64_t map_number() const { return maps_.empty() ? 0 : maps_.front()->version.number; }

  // Between steps. No other vote may be open.
  void StartVote(const WaveVote& vote);
  // The outcome of the open vote, or none until all ranks have voted.
  absl::StatusOr<std::optional<Wave>> Outcome();

  // Tickets are worked on one after another, in the order of Begin, which is the same on all ranks;
  // the second is ready only after the first was finished.
  Ticket Begin(const model::ExpertDispatch& dispatch) override;
  // Moves the exchange on: computes what other ranks have sent.
  bool Ready(Ticket ticket) override;
  // The answers are in the dispatch's `out`. Aborted, naming the rank and its reason, if the epoch
  // is over.
  absl::Status Finish(Ticket ticket, kernels::Tensor out) override;

 private:
  struct Counts {
    int32_t rows = 0;
    int32_t pairs = 0;
  };
  // The rows that go to one rank in one tile.
  struct Parcel {
    std::vector<int32_t> rows;              // of the dispatch
    std::vector<kernels::ExpertRow> pairs;  // row: index into `rows`
    std::vector<int64_t> out_rows;          // of the dispatch's `out`, for each pair
  };
  struct Open {
    Ticket ticket = 0;
    model::ExpertDispatch dispatch;
    std::vector<Parcel> parcels;  // [tile · rank_count + rank]
  };
  enum class Stage : uint8_t { kIdle, kCounts, kRows, kAnswers, kComplete };

  // The stages of the first open exchange, in order: how its rows travel, and its operations.
  absl::Status Route();
  void Start();
  void StartCounts();
  absl::Status CheckCounts() const;
  void StartRows();
  absl::Status CheckPairs();
  void StartAnswers();
  void TakeAnswers();

  absl::StatusOr<int> HolderOf(int layer, int expert) const;
  // Moves on until something has to be waited for.
  void Drive();
  absl::Status Next();
  bool OperationsDone();
  // Ends the epoch.
  void Fail(const absl::Status& status);
  void StartAllToAll(const void* send, const std::vector<int64_t>& send_bytes, void* receive,
                     const std::vector<int64_t>& receive_bytes);

  const Parcel& SentTo(int rank) const { return open_.front().parcels[tile_ * rank_count_ + rank]; }
  const Counts& ReceivedFrom(int rank) const { return received_counts_[rank * tiles_ + tile_]; }
  int64_t row_bytes() const { return shape_.row_bytes(); }

  const ExchangeShape shape_;
  const int rows_max_;
  const int tile_rows_;
  ExpertSet& experts_;
  cluster::Collective& collective_;
  const int rank_count_;
  absl::Status status_;
  std::deque<std::shared_ptr<const cluster::ExpertMap>> maps_;  // ascending; the first is in use

  std::optional<cluster::Collective::Operation> voting_;
  int64_t vote_[3] = {};
  int tiles_ = 0;  // of the step under way

  std::deque<Open> open_;  // at most two; the first is worked on
  Ticket next_ticket_ = 0;
  Stage stage_ = Stage::kIdle;
  int tile_ = 0;
  std::vector<cluster::Collective::Operation> operations_;  // started, not done
  std::vector<Counts> sent_counts_, received_counts_;       // [rank · tiles + tile]
  std::vector<kernels::ExpertRow> sent_pairs_, received_pairs_;
  std::unique_ptr<kernels::Memory> sent_rows_, received_rows_, sent_answers_, received_answers_;
};

}  // namespace epic::worker
