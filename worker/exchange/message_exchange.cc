#include "worker/exchange/message_exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/mutant.h"
#include "worker/exchange/message_exchange_peer.h"

namespace epic::worker {

using cluster::Channel;
using cluster::FrameHeader;
using cluster::FrameKind;

namespace {

// Rows of a batch that go to the same replica: few enough to spread a long prompt, enough for a
// replica to read its weights for many rows at once.
constexpr int kRowsPerReplica = 64;

}  // namespace

MessageExchange::MessageExchange(const ExchangeShape& shape, const ExchangeLimits& limits,
                                 const Clock& clock, cluster::PeerNetwork& network,
                                 ExpertSet& experts, ExchangeHandlers handlers)
    : shape_(shape),
      limits_(limits),
      clock_(clock),
      network_(network),
      experts_(experts),
      handlers_(std::move(handlers)),
      server_(shape, limits, clock, network, experts,
              {.on_done = [this](int ticket, int64_t count) { OnLocalDone(ticket, count); },
               .on_missing = [this](int ticket, int32_t pair) { OnLocalMissing(ticket, pair); }}),
      open_(std::make_unique<Open[]>(kTickets)) {
  network_.Open(
      Channel::kRows,
      {.credits = limits_.tiles_in_flight_max,
       .on_up = [this](int rank) { OnUp(rank); },
       .on_frame = [this](int rank, const FrameHeader& header,
                          cluster::Bytes payload) { OnFrame(rank, header, payload); },
       .on_down = [this](int rank, const absl::Status& why) { OnDown(rank, why); },
       .on_room =
           [this](int rank) {
             if (Peer* peer = Find(rank)) Pump(*peer);
             return false;  // Pump has sent all that there is room for
           }});
}

MessageExchange::~MessageExchange() { network_.Close(Channel::kRows); }

void MessageExchange::Join(int rank) {
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    open_[ticket].aborted = open_[ticket].used && !EPIC_MUTANT("rejoined_ranks_keep_tickets");
    open_[ticket].unrouted.clear();
    server_.DropLocal(ticket);
  }
  rank_ = rank;
  map_ = {};
  server_.set_version({});
  UpdatePeers();
}

void MessageExchange::SetMap(cluster::ExpertMap map) {
  if (map.version <= map_.version) return;
  map_ = std::move(map);
  server_.set_version(map_.version);
  UpdatePeers();
  RouteAll();
}

// Connections are wanted between ranks of which one has rows for experts of the other.
void MessageExchange::UpdatePeers() {
  const cluster::RankEntry* self = map_.Find(rank_);
  std::vector<cluster::RankEntry> wanted;
  for (const cluster::RankEntry& entry : map_.ranks) {
    if (self != nullptr && entry.ExchangesWith(*self)) wanted.push_back(entry);
  }
  std::vector<std::unique_ptr<Peer>> kept;
  auto next = peers_.begin();  // both ascend by rank
  for (const cluster::RankEntry& entry : wanted) {
    while (next != peers_.end() && (*next)->entry.rank < entry.rank) ++next;
    if (next != peers_.end() && (*next)->entry.rank == entry.rank &&
        (*next)->entry.generation == entry.generation) {
      kept.push_back(std::move(*next++));
    } else {
      kept.push_back(std::make_unique<Peer>());
      kept.back()->tries.resize(limits_.tiles_in_flight_max);
    }
    kept.back()->entry = entry;
    if (!EPIC_MUTANT("refusals_are_kept")) kept.back()->absent.clear();
  }
  for (const auto& gone : peers_) {
    if (gone == nullptr) continue;
    FailTries(*gone);
    TakeQueued(*gone);
    server_.Drop(gone->entry.rank);
  }
  peers_ = std::move(kept);
  network_.SetPeers(Channel::kRows, {wanted.begin(), wanted.end()});
}

model::ExpertExchange::Ticket MessageExchange::Begin(const model::ExpertDispatch& dispatch) {
  const Ticket ticket = open_[0].used ? 1 : 0;
  Open& open = open_[ticket];
  CHECK(!open.used) << "two tickets are open";
  const int64_t pair_count = dispatch.rows.rows * dispatch.experts.cols;
  CHECK_EQ(dispatch.rows.cols, shape_.hidden);
  CHECK_EQ(dispatch.experts.cols, shape_.experts_per_token);
  CHECK(dispatch.out.rows == pair_count && dispatch.out.data != nullptr) << dispatch.out.rows;
  open.used = true;
  open.aborted = false;
  open.dispatch = dispatch;
  open.number = next_ticket_++;
  open.attempt = 1;
  open.unanswered = pair_count;
  open.local = 0;
  open.unrouted.clear();
  open.began = clock_.Now();
  local_pairs_.clear();
  for (int64_t pair = 0; pair < pair_count; ++pair) Route(ticket, static_cast<int32_t>(pair));
  AddLocal(ticket);
  for (const auto& peer : peers_) Pump(*peer);
  return ticket;
}

bool MessageExchange::Ready(Ticket ticket) {
  CHECK(open_[ticket].used) << "ticket " << ticket;
  return open_[ticket].done();
}

absl::Status MessageExchange::Finish(Ticket ticket, kernels::Tensor out) {
  Open& open = open_[ticket];
  CHECK(open.used && open.done()) << "ticket " << ticket;
  CHECK(out.data == open.dispatch.out.data)
      << "ticket " << ticket << ": another `out` than Begin's";
  open.used = false;
  if (!open.aborted) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("layer ", open.dispatch.layer,
                                         ": this rank left the world while rows were under way"));
}

bool MessageExchange::Serve() {
  network_.Poll();
  if (EPIC_MUTANT("serving_waits") && waiting().has_value()) return false;
  return server_.Commit();
}

void MessageExchange::OnLocalDone(Ticket ticket, int64_t count) {
  open_[ticket].local -= count;
  open_[ticket].unanswered -= count;
}

void MessageExchange::OnLocalMissing(Ticket ticket, int32_t pair) {
  --open_[ticket].local;
  open_[ticket].unrouted.push_back(pair);
  RouteAll();
}

void MessageExchange::AddLocal(Ticket ticket) {
  if (local_pairs_.empty()) return;
  open_[ticket].local += static_cast<int64_t>(local_pairs_.size());
  server_.AddLocal(ticket, open_[ticket].dispatch, local_pairs_);
  local_pairs_.clear();
}

void MessageExchange::Route(Ticket ticket, int32_t pair) {
  Open& open = open_[ticket];
  const int layer = open.dispatch.layer;
  const int32_t expert = open.dispatch.experts.As<int32_t>()[pair];
  CHECK(expert >= 0 && expert < shape_.expert_count) << "expert " << expert;
  if (experts_.Holds(layer, expert)) {
    local_pairs_.push_back(pair);
  } else if (Peer* host = ChooseHost(layer, expert, pair / shape_.experts_per_token)) {
    host->queues[ticket].pairs.push_back(pair);
  } else {
    open.unrouted.push_back(pair);
  }
}

void MessageExchange::RouteAll() {
  if (!open_[0].used && !open_[1].used) return;  // each of many links that come up
  std::vector<int32_t> pairs;
  for (const auto& peer : peers_) TakeQueued(*peer);
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    if (!open_[ticket].used || open_[ticket].aborted) continue;
    pairs.clear();
    pairs.swap(open_[ticket].unrouted);
    std::ranges::sort(pairs);
    for (const int32_t pair : pairs) Route(ticket, pair);
    AddLocal(ticket);
  }
  for (const auto& peer : peers_) Pump(*peer);
}

void MessageExchange::TakeQueued(Peer& peer) {
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    Peer::Queue& queue = peer.queues[ticket];
    std::vector<int32_t>& unrouted = open_[ticket].unrouted;
    unrouted.insert(unrouted.end(), queue.pairs.begin() + static_cast<std::ptrdiff_t>(queue.next),
                    queue.pairs.end());
    queue.Clear();
  }
}

// Among the replicas that can be reached, else among those that may come up.
MessageExchange::Peer* MessageExchange::ChooseHost(int layer, int expert, int32_t row) {
  if (layer >= static_cast<int>(map_.replicas.size())) return nullptr;
  if (expert >= static_cast<int>(map_.replicas[layer].size())) return nullptr;
  const std::vector<int>& replicas = map_.replicas[layer][expert];
  for (const bool up : {true, false}) {
    const auto fits = [&](int rank) {
      const Peer* peer = Find(rank);
      return peer != nullptr && (peer->up || !up) && !peer->refuses(layer, expert);
    };
    const auto count = std::ranges::count_if(replicas, fits);
    if (count == 0) continue;
    auto left = (rank_ + row / kRowsPerReplica) % count;
    for (const int rank : replicas) {
      if (fits(rank) && left-- == 0) return Find(rank);
    }
  }
  return nullptr;
}

MessageExchange::Peer* MessageExchange::Find(int rank) const {
  const auto found =
      std::ranges::lower_bound(peers_, rank, {}, [](const auto& peer) { return peer->entry.rank; });
  return found != peers_.end() && (*found)->entry.rank == rank ? found->get() : nullptr;
}

void MessageExchange::Pump(Peer& peer) {
  while (peer.up && network_.HasRoom(Channel::kRows, peer.entry.rank) &&
         peer.FreeTry() != nullptr) {
    const Open *first = &open_[0], *second = &open_[1];
    const Ticket older = first->number <= second->number ? 0 : 1;
    const Ticket ticket = !peer.queues[older].empty() ? older : 1 - older;
    if (peer.queues[ticket].empty() || !SendNext(peer, ticket)) return;
  }
}

bool MessageExchange::SendNext(Peer& peer, Ticket ticket) {
  const Open& open = open_[ticket];
  Peer::Queue& queue = peer.queues[ticket];
  const int32_t k = shape_.experts_per_token;
  const auto pairs_max = static_cast<size_t>(limits_.pairs_max(shape_));
  Try& attempt = *peer.FreeTry();
  attempt.pairs.clear();
  frame_pairs_.clear();
  frame_parts_.assign(1, {});  // the head's place
  int row_count = 0;
  int32_t row = -1;
  for (size_t i = queue.next; i < queue.pairs.size() && attempt.pairs.size() < pairs_max; ++i) {
    const int32_t pair = queue.pairs[i];
    if (pair / k != row) {
      if (row_count == limits_.tile_rows_max) break;
      AddFrameRow(open.dispatch.rows, pair / k, /*follows=*/pair / k == row + 1 && row_count > 0);
      row = pair / k;
      ++row_count;
    }
    attempt.pairs.push_back(pair);
    const int32_t expert = open.dispatch.experts.As<int32_t>()[pair];
    frame_pairs_.push_back({static_cast<uint16_t>(row_count - 1), static_cast<uint16_t>(expert)});
  }
  WriteDispatchHead(frame_pairs_, row_count, frame_head_);
  frame_parts_[0] = frame_head_;
  const uint16_t decode = open.dispatch.decode ? cluster::kFrameDecode : 0;
  const FrameHeader header{.kind = FrameKind::kDispatch,
                           .layer = static_cast<uint16_t>(open.dispatch.layer),
                           .attempt = open.attempt,
                           .term = map_.version.term,
                           .map_number = map_.version.number,
                           .dispatch = next_dispatch_,
                           .flags = static_cast<uint16_t>(
                               decode | cluster::WeightsFlags(shape_.weights))};
  if (!network_.SendOnCredit(Channel::kRows, peer.entry.rank, header, frame_parts_)) return false;
  attempt.used = true;
  attempt.dispatch = next_dispatch_++;
  attempt.attempt = open.attempt;
  attempt.ticket = ticket;
  attempt.sent = clock_.Now();
  ++counters_.dispatches_sent;
  Pass(Failpoint::kDispatchSent);
  queue.next += attempt.pairs.size();
  if (queue.empty()) queue.Clear();
  return true;
}

// `follows`: the row lies behind the one added before.
void MessageExchange::AddFrameRow(const kernels::Tensor& rows, int32_t row, bool follows) {
  const auto* data = reinterpret_cast<const std::byte*>(rows.Row<kernels::BF16>(row));
  const auto bytes = static_cast<size_t>(shape_.row_bytes());
  if (follows) {
    cluster::Bytes& last = frame_parts_.back();
    last = {last.data(), last.size() + bytes};
  } else {
    frame_parts_.emplace_back(data, bytes);
  }
}

std::optional<ExchangeWait> MessageExchange::waiting() const {
  const Open* oldest = nullptr;
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    const Open& open = open_[ticket];
    if (!open.used || open.done()) continue;
    if (oldest == nullptr || open.number < oldest->number) oldest = &open;
  }
  if (oldest == nullptr || oldest->local > 0) return std::nullopt;
  const auto ticket = static_cast<Ticket>(oldest - open_.get());
  ExchangeWait wait{.layer = oldest->dispatch.layer, .since = absl::InfiniteFuture()};
  for (const auto& peer : peers_) {
    for (const Try& each : peer->tries) {
      if (!each.used || each.ticket != ticket || each.sent >= wait.since) continue;
      wait.rank = peer->entry.rank;
      wait.since = each.sent;
    }
  }
  if (wait.rank >= 0) return wait;
  wait.since = oldest->began;
  for (const auto& peer : peers_) {
    if (!peer->queues[ticket].empty()) wait.rank = peer->entry.rank;
  }
  return wait;
}

ExchangeGauges MessageExchange::gauges() const {
  ExchangeGauges gauges;
  for (const auto& peer : peers_) {
    gauges.outstanding_dispatches += peer->outstanding();
    gauges.credits += network_.credits(Channel::kRows, peer->entry.rank);
  }
  return gauges;
}

}  // namespace epic::worker
