// ExpertServer: rows for experts that this rank holds, from other ranks and from its own steps, in
// one queue. Each commit takes a group of one layer: the layer of the oldest decode rows, else of
// the oldest prompt rows; prompt rows older than `prompt_patience` count as decode rows. So ranks
// that run together batch together, and the experts' weights are read once for all of them.
//
// The lemma of protocol.md §3: serving never waits, for a rank, a map, or room to send.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/env.h"
#include "cluster/placement/expert_map.h"
#include "cluster/transport/peer_network.h"
#include "model/expert_exchange.h"
#include "worker/exchange/dispatch_frame.h"
#include "worker/exchange/row_buffer.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

struct ServerCounters {
  int64_t commits = 0;
  int64_t frames_served = 0;
  int64_t rows_served = 0;  // (row, expert) products for other ranks
  int64_t local_rows = 0;   // the same for this rank's own steps
  int64_t refused_not_here = 0;
  int64_t refused_no_credit = 0;
  int64_t refused_bad_frame = 0;
  int64_t refused_revoked = 0;
};

// One thread, the rank's loop.
class ExpertServer {
 public:
  // What becomes of a rank's own rows; called from Commit.
  struct LocalHandlers {
    // So many more products of the ticket are in its `out`.
    std::function<void(int ticket, int64_t count)> on_done;
    // The expert of this pair (row · k + j) has been dropped since.
    std::function<void(int ticket, int32_t pair)> on_missing;
  };

  // All references outlive this.
  ExpertServer(const ExchangeShape& shape, const ExchangeLimits& limits, const Clock& clock,
               cluster::PeerNetwork& network, ExpertSet& experts, LocalHandlers local);

  // Of the map held here; refusals tell it.
  void set_version(cluster::MapVersion version) { version_ = version; }

  // A dispatch has arrived: it is queued, or refused at once. `known`: the peer is in the map.
  void OnDispatch(int peer, bool known, const cluster::FrameHeader& header, cluster::Bytes payload);
  // The connection is down: what it sent is forgotten.
  void Drop(int peer);

  // Adds pairs (row · k + j, ascending) of this rank's own dispatch, whose experts are held here.
  void AddLocal(int ticket, const model::ExpertDispatch& dispatch, std::span<const int32_t> pairs);
  void DropLocal(int ticket);

  bool busy() const { return !jobs_.empty(); }
  // Computes one group and answers it. False: nothing is queued.
  bool Commit();

  const ServerCounters& counters() const { return counters_; }

 private:
  // Rows of one frame, or of one ticket of this rank.
  struct Job {
    int peer = -1;  // -1: this rank's own
    bool decode = false;
    bool done = false;
    int layer = 0;
    absl::Time arrived;
    // Of a frame.
    cluster::FrameHeader header;
    RowBuffer bytes;
    DispatchFrame frame;  // views into `bytes`
    // Of this rank's own.
    int ticket = 0;
    model::ExpertDispatch dispatch;
    std::vector<int32_t> pairs;
    size_t next_pair = 0;
  };
  // What a job gives to the group being computed.
  struct Part {
    Job* job = nullptr;
    size_t first_pair = 0;  // of the job
    size_t pair_count = 0;
  };

  const Job& Head() const;
  bool Urgent(const Job& job) const;
  // The parts of a commit, in order.
  void ChooseParts();
  void Gather();
  void Answer();
  void RemoveDone();

  bool AddFrame(Job& job);
  bool AddLocalPart(Job& job);
  bool Refused(Job& job);
  void SkipMissing(Job& job);
  void GatherFrame(const Job& job);
  void GatherLocal(const Part& part);
  void AnswerLocal(const Part& part, const std::byte* answers);
  void Refuse(int peer, const cluster::FrameHeader& header, cluster::NackReason reason,
              cluster::Bytes payload = {});
  cluster::FrameHeader ReplyTo(const cluster::FrameHeader& header, cluster::FrameKind kind) const;
  Job TakeJob();

  const ExchangeShape shape_;
  const ExchangeLimits limits_;
  const Clock& clock_;
  cluster::PeerNetwork& network_;
  ExpertSet& experts_;
  const LocalHandlers local_;
  cluster::MapVersion version_;
  std::vector<Job> jobs_;   // by arrival
  std::vector<Job> spare_;  // done; their memory is used again
  // The group.
  std::vector<Part> parts_;
  int64_t rows_left_ = 0;  // that it may still take
  int64_t pairs_left_ = 0;
  std::vector<kernels::ExpertRow> pairs_;
  RowBuffer gathered_, answers_;
  int64_t row_count_ = 0;  // in gathered_
  kernels::Tensor rows_, out_;
  std::vector<uint16_t> missing_experts_;
  std::vector<std::pair<int, int32_t>> missing_pairs_;  // (ticket, pair)
  ServerCounters counters_;
};

}  // namespace epic::worker
