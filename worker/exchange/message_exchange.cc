#include "worker/exchange/message_exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/mutant.h"
#include "worker/exchange/message_exchange_state.h"

namespace epic::worker {

using cluster::Channel;
using cluster::FrameHeader;

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
               .on_missing = [this](auto missing) { OnLocalMissing(missing); }}),
      tickets_(std::make_unique<OpenTicket[]>(kTickets)) {
  network_.Open(
      Channel::kRows,
      {.credits = limits_.tiles_in_flight_max,
       .on_up = [this](int rank) { OnUp(rank); },
       .on_frame = [this](int rank, const FrameHeader& header,
                          cluster::Bytes payload) { OnFrame(rank, header, payload); },
       .on_down = [this](int rank, const absl::Status& why) { OnDown(rank, why); },
       .on_room =
           [this](int rank) {
             if (Partner* partner = Find(rank)) Pump(*partner);
             return false;  // Pump has sent all that there is room for
           }});
}

MessageExchange::~MessageExchange() { network_.Close(Channel::kRows); }

void MessageExchange::Join(int rank) {
  CHECK_GE(rank, 0);
  // Answers to what was sent under the old number cannot be told from those of another life.
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    tickets_[ticket].aborted = tickets_[ticket].used && !EPIC_MUTANT("rejoined_ranks_keep_tickets");
    tickets_[ticket].unrouted.clear();
    server_.DropLocal(ticket);
  }
  rank_ = rank;
  // Without a map no rank is a partner, so UpdatePartners ends all tries. Pairs of an aborted
  // ticket are never routed again.
  map_ = {};
  server_.set_version({});
  UpdatePartners();
}

void MessageExchange::SetMap(cluster::ExpertMap map) {
  // Maps come in order, but a redialled control stream may bring one again.
  if (map.version <= map_.version) return;
  map_ = std::move(map);
  server_.set_version(map_.version);
  UpdatePartners();
  RouteAll();
}

// Connections are wanted between ranks of which one has rows for experts of the other.
void MessageExchange::UpdatePartners() {
  const cluster::RankEntry* self = map_.Find(rank_);
  std::vector<cluster::RankEntry> wanted;
  for (const cluster::RankEntry& entry : map_.ranks) {
    if (self != nullptr && entry.ExchangesWith(*self)) wanted.push_back(entry);
  }
  std::vector<std::unique_ptr<Partner>> kept;
  auto next = partners_.begin();  // both ascend by rank
  for (const cluster::RankEntry& entry : wanted) {
    while (next != partners_.end() && (*next)->entry.rank < entry.rank) ++next;
    // Generations are compared too: in another term the number may be that of another process,
    // which never answers what was sent to the one before.
    if (next != partners_.end() && (*next)->entry.rank == entry.rank &&
        (*next)->entry.generation == entry.generation) {
      kept.push_back(std::move(*next++));
    } else {
      kept.push_back(std::make_unique<Partner>());
      kept.back()->tries.resize(limits_.tiles_in_flight_max);
    }
    kept.back()->entry = entry;
    if (!EPIC_MUTANT("refusals_are_kept")) kept.back()->absent.clear();
  }
  // A host that left the map never answers: what it had goes back to be routed. Its rows in the
  // server's queue are dropped, for nobody is left to take their answers.
  for (const auto& gone : partners_) {
    if (gone == nullptr) continue;
    FailTries(*gone);
    TakeQueued(*gone);
    server_.Drop(gone->entry.rank);
  }
  partners_ = std::move(kept);
  network_.SetPeers(Channel::kRows, {wanted.begin(), wanted.end()});
}

model::ExpertExchange::Ticket MessageExchange::Begin(const model::ExpertDispatch& dispatch) {
  const Ticket ticket = tickets_[0].used ? 1 : 0;
  OpenTicket& open = tickets_[ticket];
  CHECK(!open.used) << "two tickets are open";
  const int64_t pair_count = dispatch.rows.rows * dispatch.experts.cols;
  CHECK_EQ(dispatch.rows.cols, shape_.hidden);
  CHECK_EQ(dispatch.experts.cols, shape_.experts_per_token);
  CHECK(dispatch.out.rows == pair_count && dispatch.out.data != nullptr) << dispatch.out.rows;
  open.used = true;
  open.aborted = false;
  open.dispatch = dispatch;
  open.number = next_ticket_++;
  open.try_number = 1;
  open.unanswered = pair_count;
  open.local = 0;
  open.unrouted.clear();
  open.began = clock_.Now();
  local_pairs_.clear();
  // All pairs are routed before any is sent, so that each host gets as few and as full frames as
  // its share allows.
  for (int64_t pair = 0; pair < pair_count; ++pair) Route(ticket, static_cast<int32_t>(pair));
  AddLocal(ticket);
  for (const auto& partner : partners_) Pump(*partner);
  return ticket;
}

bool MessageExchange::Ready(Ticket ticket) {
  CHECK(tickets_[ticket].used) << "ticket " << ticket;
  return tickets_[ticket].done();
}

absl::Status MessageExchange::Finish(Ticket ticket, kernels::Tensor out) {
  OpenTicket& open = tickets_[ticket];
  CHECK(open.used && open.done()) << "ticket " << ticket;
  CHECK(out.data == open.dispatch.out.data)
      << "ticket " << ticket << ": another `out` than Begin's";
  open.used = false;
  if (!open.aborted) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("layer ", open.dispatch.layer,
                                         ": this rank left the world while rows were under way"));
}

bool MessageExchange::Serve() {
  // First, so that the commit can batch what has just arrived.
  network_.Poll();
  if (EPIC_MUTANT("serving_waits") && waiting().has_value()) return false;
  return server_.Commit();
}

void MessageExchange::OnLocalDone(Ticket ticket, int64_t count) {
  CHECK(count > 0 && count <= tickets_[ticket].local) << "ticket " << ticket << ": " << count;
  tickets_[ticket].local -= count;
  tickets_[ticket].unanswered -= count;
}

// All of a commit at once: routing is linear in everything that is not under way, so routing once
// for each dropped pair would be quadratic.
void MessageExchange::OnLocalMissing(std::span<const ExpertServer::LocalPair> missing) {
  for (const auto& [ticket, pair] : missing) {
    CHECK_GT(tickets_[ticket].local, 0) << "ticket " << ticket;
    --tickets_[ticket].local;
    tickets_[ticket].unrouted.push_back(pair);
  }
  RouteAll();
}

void MessageExchange::AddLocal(Ticket ticket) {
  if (local_pairs_.empty()) return;
  tickets_[ticket].local += static_cast<int64_t>(local_pairs_.size());
  server_.AddLocal(ticket, tickets_[ticket].dispatch, local_pairs_);
  local_pairs_.clear();
}

void MessageExchange::Route(Ticket ticket, int32_t pair) {
  OpenTicket& open = tickets_[ticket];
  const int layer = open.dispatch.layer;
  const int32_t expert = open.dispatch.experts.As<int32_t>()[pair];
  CHECK(expert >= 0 && expert < shape_.expert_count) << "expert " << expert;
  // Own experts come first, even if the map does not name this rank (yet, or any more): the answer
  // has the same bits everywhere, and here it costs no wire.
  if (experts_.Holds(layer, expert)) {
    local_pairs_.push_back(pair);
  } else if (Partner* host = ChooseHost(layer, expert, pair / shape_.experts_per_token)) {
    host->queues[ticket].pairs.push_back(pair);
  } else {
    // RouteAll tries again after each event that may change the choice: a map, a link, a refusal.
    open.unrouted.push_back(pair);
  }
}

// May be entered from handlers of the network and of the server, and never from itself: Route and
// Pump call neither back, for the network tells nothing from within a send and the server only
// queues what AddLocal gives it. So `unrouted` and the queues do not change under the loops here.
void MessageExchange::RouteAll() {
  // Without a ticket nothing is routed; hundreds of links may come up in a row as a world starts.
  if (!tickets_[0].used && !tickets_[1].used) return;
  std::vector<int32_t> pairs;
  for (const auto& partner : partners_) TakeQueued(*partner);
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    if (!tickets_[ticket].used || tickets_[ticket].aborted) continue;
    pairs.clear();
    pairs.swap(tickets_[ticket].unrouted);
    // Pairs of one row side by side: a frame carries a row once for all its experts of that host.
    std::ranges::sort(pairs);
    for (const int32_t pair : pairs) Route(ticket, pair);
    AddLocal(ticket);
  }
  for (const auto& partner : partners_) Pump(*partner);
}

void MessageExchange::TakeQueued(Partner& partner) {
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    Partner::Queue& queue = partner.queues[ticket];
    std::vector<int32_t>& unrouted = tickets_[ticket].unrouted;
    unrouted.insert(unrouted.end(), queue.pairs.begin() + static_cast<std::ptrdiff_t>(queue.next),
                    queue.pairs.end());
    queue.Clear();
  }
}

// Among the replicas that can be reached, else among those that may come up. The choice depends on
// the row's number and this rank alone, so it needs no state, and blocks of neighbouring rows stay
// together: a replica reads its weights once for many rows. Ranks start at different replicas.
MessageExchange::Partner* MessageExchange::ChooseHost(int layer, int expert, int32_t row) {
  // Before the first map there are no replicas, and a map comes from another process.
  if (layer >= static_cast<int>(map_.replicas.size())) return nullptr;
  if (expert >= static_cast<int>(map_.replicas[layer].size())) return nullptr;
  const std::vector<int>& replicas = map_.replicas[layer][expert];
  for (const bool up : {true, false}) {
    const auto fits = [&](int rank) {
      const Partner* partner = Find(rank);
      return partner != nullptr && (partner->up || !up) && !partner->refuses(layer, expert);
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

MessageExchange::Partner* MessageExchange::Find(int rank) const {
  const auto rank_of = [](const auto& partner) { return partner->entry.rank; };
  const auto found = std::ranges::lower_bound(partners_, rank, {}, rank_of);
  return found != partners_.end() && (*found)->entry.rank == rank ? found->get() : nullptr;
}

void MessageExchange::FailTries(Partner& partner) {
  for (Try& each : partner.tries) {
    if (each.used) Abandon(each);
  }
}

void MessageExchange::Abandon(Try& tried) {
  tried.used = false;
  ++counters_.dispatches_lost;
  // A ticket that was finished or aborted since wants nothing any more.
  OpenTicket& open = tickets_[tried.ticket];
  if (!open.used || open.aborted) return;
  ++open.try_number;
  open.unrouted.insert(open.unrouted.end(), tried.pairs.begin(), tried.pairs.end());
}

bool MessageExchange::has_ready_ticket() const {
  return (tickets_[0].used && tickets_[0].done()) || (tickets_[1].used && tickets_[1].done());
}

std::optional<ExchangeWait> MessageExchange::waiting() const {
  // Only the oldest ticket can hold up its step; a wait for the younger would blame the wrong rank.
  const OpenTicket* oldest = nullptr;
  for (Ticket ticket = 0; ticket < kTickets; ++ticket) {
    const OpenTicket& open = tickets_[ticket];
    if (!open.used || open.done()) continue;
    if (oldest == nullptr || open.number < oldest->number) oldest = &open;
  }
  if (oldest == nullptr || oldest->local > 0) return std::nullopt;
  const auto ticket = static_cast<Ticket>(oldest - tickets_.get());
  ExchangeWait wait{.layer = oldest->dispatch.layer, .since = absl::InfiniteFuture()};
  for (const auto& partner : partners_) {
    for (const Try& each : partner->tries) {
      if (!each.used || each.ticket != ticket || each.sent >= wait.since) continue;
      wait.rank = partner->entry.rank;
      wait.since = each.sent;
    }
  }
  if (wait.rank >= 0) return wait;
  // Nothing was sent: the ticket waits for a credit or a connection, or for a map with a host.
  wait.since = oldest->began;
  for (const auto& partner : partners_) {
    if (!partner->queues[ticket].empty()) wait.rank = partner->entry.rank;
  }
  return wait;
}

ExchangeGauges MessageExchange::gauges() const {
  ExchangeGauges gauges;
  for (const auto& partner : partners_) {
    gauges.outstanding_dispatches += partner->outstanding();
    gauges.credits += network_.credits(Channel::kRows, partner->entry.rank);
  }
  return gauges;
}

}  // namespace epic::worker
