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
#include "cluster/transport/transport.h"
#include "model/expert_exchange.h"
#include "worker/exchange/dispatch_frame.h"
#include "worker/exchange/row_buffer.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

struct ServerCounters {
  int64_t commits = 0;
  int64_t frames_served = 0;
  int64_t rows_served = 0;        // (row, expert) products for other ranks
  int64_t local_rows = 0;         // the same for this rank's own steps
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
               cluster::Transport& transport, ExpertSet& experts, LocalHandlers local);

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
  struct Job {
    int peer = -1;  // -1: this rank's own
    bool decode = false;
    int layer = 0;
    absl::Time arrived;
    // Of a frame.
    cluster::FrameHeader header;
    DispatchFrame frame;  // views into `bytes`
    RowBuffer bytes;
    // Of this rank's own.
    int ticket = 0;
    model::ExpertDispatch dispatch;
    std::vector<int32_t> pairs;
    size_t next_pair = 0;
  };
  // A job's part of the group being computed.
  struct Part {
    size_t job = 0;
    int64_t first_pair = 0;  // of the group
    int64_t pair_count = 0;
  };

  const Job& Head() const;
  bool Urgent(const Job& job) const;
  bool RefuseMissing(Job& job);
  void Gather(int layer, bool urgent);
  bool AddFrame(size_t index);
  bool AddLocalRows(size_t index);
  void AddRow(const std::byte* row);
  bool ComputeInPlace(const Part& part);
  void Answer(const Part& part);
  void Refuse(int peer, const cluster::FrameHeader& header, cluster::NackReason reason,
              cluster::Bytes payload = {});
  void RemoveDone();
  RowBuffer TakeBuffer(int64_t bytes);

  const ExchangeShape shape_;
  const ExchangeLimits limits_;
  const Clock& clock_;
  cluster::Transport& transport_;
  ExpertSet& experts_;
  const LocalHandlers local_;
  cluster::MapVersion version_;
  std::vector<Job> jobs_;  // by arrival
  std::vector<RowBuffer> spare_;
  // The group.
  std::vector<Part> parts_;
  std::vector<kernels::ExpertRow> pairs_;
  RowBuffer rows_, answers_;
  int64_t row_count_ = 0;
  ServerCounters counters_;
};

}  // namespace epic::worker
