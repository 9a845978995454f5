// Private to MessageExchange: what it keeps of tickets and peers.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "worker/exchange/message_exchange.h"

namespace epic::worker {

// A ticket. Pairs are named by row · k + j.
struct MessageExchange::Open {
  bool used = false;
  bool aborted = false;
  model::ExpertDispatch dispatch;
  uint64_t number = 0;     // ascending
  uint32_t attempt = 1;    // grows with every try that was lost
  int64_t unanswered = 0;  // pairs
  int64_t local = 0;       // pairs in the server's queue
  absl::Time began;
  std::vector<int32_t> unrouted;  // no host is known for them

  bool done() const { return unanswered == 0 || aborted; }
};

// A dispatch under way to one host; its place for answers is the ticket's `out`.
struct MessageExchange::Try {
  bool used = false;
  uint64_t dispatch = 0;
  uint32_t attempt = 0;
  Ticket ticket = 0;
  absl::Time sent;
  std::vector<int32_t> pairs;
};

struct MessageExchange::Peer {
  // Routed to this peer and not sent.
  struct Queue {
    std::vector<int32_t> pairs;
    size_t next = 0;

    bool empty() const { return next == pairs.size(); }
    void Clear() {
      pairs.clear();
      next = 0;
    }
  };

  cluster::RankEntry entry;
  bool up = false;
  std::vector<Try> tries;  // [tiles_in_flight_max]
  Queue queues[MessageExchange::kTickets];
  // (layer, expert) that it refused with NOT_HERE, until a newer map.
  std::vector<std::pair<int, int>> absent;

  bool refuses(int layer, int expert) const {
    return std::ranges::find(absent, std::pair(layer, expert)) != absent.end();
  }
  Try* Outstanding(uint64_t dispatch, uint32_t attempt) {
    for (Try& each : tries) {
      if (each.used && each.dispatch == dispatch && each.attempt == attempt) return &each;
    }
    return nullptr;
  }
  Try* AnyOutstanding() {
    const auto found = std::ranges::find(tries, true, &Try::used);
    return found != tries.end() ? &*found : nullptr;
  }
  Try* FreeTry() {
    const auto found = std::ranges::find(tries, false, &Try::used);
    return found != tries.end() ? &*found : nullptr;
  }
  int outstanding() const { return static_cast<int>(std::ranges::count(tries, true, &Try::used)); }
};

}  // namespace epic::worker
