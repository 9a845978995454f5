// Private to MessageExchange: what it keeps of tickets and of its partners, the ranks that it
// exchanges rows with. At any time a pair of an open ticket is in exactly one place: answered,
// `unrouted`, queued for one partner, in one used try, or with the server (`local`). All but the
// answered ones add up to `unanswered`.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "worker/exchange/message_exchange.h"

namespace epic::worker {

// An open ticket. Pairs are named by row · k + j.
struct MessageExchange::OpenTicket {
  bool used = false;
  bool aborted = false;
  model::ExpertDispatch dispatch;
  uint64_t number = 0;     // ascending
  uint32_t try_number = 1;  // grows with every try that was lost
  int64_t unanswered = 0;  // pairs
  int64_t local = 0;       // pairs in the server's queue
  absl::Time began;
  std::vector<int32_t> unrouted;  // pairs for which no host is known

  bool done() const { return unanswered == 0 || aborted; }
};

// A dispatch under way to one host; its place for answers is the ticket's `out`.
struct MessageExchange::Try {
  bool used = false;
  uint64_t dispatch = 0;
  uint32_t try_number = 0;
  Ticket ticket = 0;
  absl::Time sent;
  std::vector<int32_t> pairs;
};

struct MessageExchange::Partner {
  // Routed to this partner and not sent.
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
  std::vector<Try> tries;  // [tiles_in_flight_max]: as many as there can be credits
  Queue queues[MessageExchange::kTickets];
  // (layer, expert) that it refused with NOT_HERE, until a newer map.
  std::vector<std::pair<int, int>> absent;

  bool refuses(int layer, int expert) const {
    return std::ranges::find(absent, std::pair(layer, expert)) != absent.end();
  }
  Try* Outstanding(uint64_t dispatch, uint32_t try_number) {
    for (Try& each : tries) {
      if (each.used && each.dispatch == dispatch && each.try_number == try_number) return &each;
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
