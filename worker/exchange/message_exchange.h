// MessageExchange: a rank's side of the exchange by messages (protocol.md §3). Its own rows go to
// the ranks that the newest map names and come back as answers; other ranks' rows are served by
// its ExpertSet. Ranks never move in step: nobody waits but for the answers to its own rows.
//
//   MessageExchange exchange(shape, limits, clock, network, experts, {.on_link_down = …});
//   exchange.Join(rank);                   // Welcome
//   exchange.SetMap(map);                  // every PublishMap
//   while (…) {                            // the rank's loop
//     loop.RunOnce(busy ? zero : wait);    // sockets: handlers are called from here, or from Serve
//     service.Advance();                   // one stage of a step
//     exchange.Serve();                    // one commit of rows for experts held here
//   }
//
// Whether rows are computed here or elsewhere, by which replica, and how often they had to be sent
// changes no bit of what Finish gives. docs/exchange.md tells the frames.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/env.h"
#include "cluster/placement/expert_map.h"
#include "cluster/transport/peer_network.h"
#include "model/expert_exchange.h"
#include "worker/exchange/expert_server.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

// The wait of an exchange, as RankReport tells it.
struct ExchangeWait {
  int rank = -1;  // whose answer, credit or connection; -1: a map that hosts the expert
  int layer = 0;
  absl::Time since;
};

// Gauges: values at this moment.
struct ExchangeGauges {
  int outstanding_dispatches = 0;
  int64_t credits = 0;  // granted to this rank and not used
};

// Counts since the object was made.
struct ExchangeCounters {
  int64_t dispatches_sent = 0;
  int64_t dispatches_lost = 0;  // the host is down, revoked or said no: their rows were sent again
  int64_t stale_frames = 0;     // answers to a try that is not outstanding: dropped
  int64_t bad_frames = 0;       // frames that made no sense; the server counts its own
  int64_t nacks_received = 0;
  int64_t arrivals = 0;         // frames, and connections that came or broke
};

// Called from the network's handlers, after the exchange has done its part.
struct ExchangeHandlers {
  // The connection to a rank of the newest map is there (LinkUp), or broke (LinkDown).
  std::function<void(const cluster::RankEntry& rank)> on_link_up;
  std::function<void(const cluster::RankEntry& rank, const absl::Status& why)> on_link_down;
};

// A plain object on the rank's loop. Two tickets may be open: a second step may begin its exchange
// before the first has finished, as multi-token prediction will (its drafts go out while rows of
// the main model are under way). The older ticket is served first.
class MessageExchange : public model::ExpertExchange {
 public:
  // All references outlive this; the network's channel of rows is opened and closed here.
  MessageExchange(const ExchangeShape& shape, const ExchangeLimits& limits, const Clock& clock,
                  cluster::PeerNetwork& network, ExpertSet& experts,
                  ExchangeHandlers handlers = {});
  ~MessageExchange() override;

  // This process is `rank` of the world from now on, and knows no map yet. What was under way under
  // another number ends: open tickets are ready, and Finish says Aborted.
  void Join(int rank);
  // Older maps than the one held are ignored. Connections follow the map; rows whose host has left
  // it are sent elsewhere.
  void SetMap(cluster::ExpertMap map);
  const cluster::ExpertMap& map() const { return map_; }

  // `dispatch.out` is written from now on. Rows of an expert that is held nowhere wait for a map.
  Ticket Begin(const model::ExpertDispatch& dispatch) override;
  bool Ready(Ticket ticket) override;
  // OK, or Aborted after Join.
  absl::Status Finish(Ticket ticket, kernels::Tensor out) override;

  // Takes in what has arrived and computes at most one group of rows (of one layer, at most
  // `tile_rows_max`) for experts held here. Never waits. Called at stage boundaries and while
  // waiting; a rank's own rows are computed here too. False: there was nothing to compute.
  bool Serve();
  // Whether others may ask for experts held here.
  bool has_peers() const { return !partners_.empty(); }
  // Whether Serve would compute something that has already arrived.
  bool serving() const { return server_.busy(); }

  // Whether an open ticket is ready: what waits for it can go on.
  bool has_ready_ticket() const;

  // The wait of the oldest open ticket. None if all its answers are here or are to be computed
  // here.
  std::optional<ExchangeWait> waiting() const;
  ExchangeGauges gauges() const;
  const ExchangeCounters& counters() const { return counters_; }
  const ServerCounters& served() const { return server_.counters(); }

 private:
  struct OpenTicket;
  struct Try;
  struct Partner;

  static constexpr int kTickets = 2;

  void OnUp(int rank);
  void OnDown(int rank, const absl::Status& why);
  void OnFrame(int rank, const cluster::FrameHeader& header, cluster::Bytes payload);
  void OnCombine(Partner& partner, const cluster::FrameHeader& header, cluster::Bytes payload);
  void OnNack(Partner& partner, const cluster::FrameHeader& header, cluster::Bytes payload);
  void NoteAbsent(Partner& partner, const Try& refused, cluster::Bytes payload);
  // Ends the connection.
  void Distrust(Partner& partner, const std::string& what);
  void OnLocalDone(Ticket ticket, int64_t count);
  void OnLocalMissing(std::span<const ExpertServer::LocalPair> missing);

  void UpdatePartners();
  Partner* Find(int rank) const;
  // Chooses hosts anew for all pairs that are not under way, and sends.
  void RouteAll();
  void Route(Ticket ticket, int32_t pair);
  void AddLocal(Ticket ticket);
  Partner* ChooseHost(int layer, int expert, int32_t row);
  // Sends what credits allow.
  void Pump(Partner& partner);
  bool SendNext(Partner& partner, Ticket ticket);
  void AddFrameRow(const kernels::Tensor& rows, int32_t row, bool follows);
  void FailTries(Partner& partner);
  void Abandon(Try& tried);
  void TakeQueued(Partner& partner);

  const ExchangeShape shape_;
  const ExchangeLimits limits_;
  const Clock& clock_;
  cluster::PeerNetwork& network_;
  ExpertSet& experts_;
  const ExchangeHandlers handlers_;
  ExpertServer server_;
  cluster::ExpertMap map_;
  int rank_ = -1;
  std::vector<std::unique_ptr<Partner>> partners_;  // ascending by rank
  std::unique_ptr<OpenTicket[]> tickets_;              // [kTickets]
  uint64_t next_ticket_ = 1;
  uint64_t next_dispatch_ = 1;
  // Scratch.
  std::vector<int32_t> local_pairs_;
  std::vector<FramePair> frame_pairs_;
  std::vector<std::byte> frame_head_;
  std::vector<cluster::Bytes> frame_parts_;
  ExchangeCounters counters_;
};

}  // namespace epic::worker
