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
  // A product of this rank's own: the pair (row · k + j) of a ticket.
  struct LocalPair {
    int ticket = 0;
    int32_t pair = 0;
  };
  // Handlers for a rank's own rows. They are called at the end of Commit, and may add rows.
  struct LocalHandlers {
    // `count` more products of the ticket are in its `out`.
    std::function<void(int ticket, int64_t count)> on_done;
    // The experts of these pairs have been dropped since. Once a commit, with all of them.
    std::function<void(std::span<const LocalPair> missing)> on_missing;
  };

  // All references outlive this.
  ExpertServer(const ExchangeShape& shape, const ExchangeLimits& limits, const Clock& clock,
               cluster::PeerNetwork& network, ExpertSet& experts, LocalHandlers local);

  // The version of the map held here; answers and refusals tell it.
  void set_version(cluster::MapVersion version) { version_ = version; }

  // A dispatch has arrived: it is queued, or refused at once. `known`: the peer is in the map.
  void OnDispatch(int peer, bool known, const cluster::FrameHeader& header, cluster::Bytes payload);
  // The connection is down: what it sent is forgotten. Never called within Commit.
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
    // Members used only for frames from other ranks.
    cluster::FrameHeader header;
    RowBuffer bytes;
    DispatchFrame frame;  // views into `bytes`
    // Members used only for this rank's own rows.
    int ticket = 0;
    model::ExpertDispatch dispatch;
    std::vector<int32_t> pairs;
    size_t next_pair = 0;
  };
  // The pairs of one job that are in the group being computed.
  struct Part {
    Job* job = nullptr;
    size_t first_pair = 0;  // index into the job's pairs
    size_t pair_count = 0;
  };

  const Job& Head() const;
  bool Urgent(const Job& job) const;
  // The parts of a commit, in order. An empty group has room for any frame and any own pair, so the
  // first job that is looked at is taken or refused: none waits for ever.
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
  std::vector<Job> jobs_;   // in order of arrival
  std::vector<Job> spare_;  // done; their memory is used again
  // The group of one commit; `parts_` point into `jobs_`, which must not move until RemoveDone.
  std::vector<Part> parts_;
  int64_t rows_left_ = 0;  // room in the group
  int64_t pairs_left_ = 0;
  std::vector<kernels::ExpertRow> pairs_;
  RowBuffer gathered_, answers_;
  int64_t row_count_ = 0;  // in gathered_
  kernels::Tensor rows_, out_;
  std::vector<uint16_t> missing_experts_;
  std::vector<LocalPair> missing_pairs_;  // told at the end of the commit
  ServerCounters counters_;
};

}  // namespace epic::worker
