// MessageExchange: what arrives.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/failpoint.h"
#include "base/mutant.h"
#include "worker/exchange/message_exchange.h"
#include "worker/exchange/message_exchange_peer.h"

namespace epic::worker {

using cluster::Channel;
using cluster::FrameHeader;
using cluster::FrameKind;
using cluster::NackReason;

void MessageExchange::OnUp(int rank) {
  ++counters_.arrivals;
  Peer* peer = Find(rank);
  if (peer == nullptr) return;
  peer->up = true;
  RouteAll();
  const cluster::RankEntry entry = peer->entry;
  if (handlers_.on_link_up) handlers_.on_link_up(entry);
}

void MessageExchange::OnDown(int rank, const absl::Status& why) {
  ++counters_.arrivals;
  Peer* peer = Find(rank);
  if (peer == nullptr) return;
  peer->up = false;
  if (!EPIC_MUTANT("tries_outlive_connections")) FailTries(*peer);
  if (!EPIC_MUTANT("jobs_outlive_connections")) server_.Drop(rank);
  RouteAll();
  const cluster::RankEntry entry = peer->entry;
  if (handlers_.on_link_down) handlers_.on_link_down(entry, why);
}

void MessageExchange::OnFrame(int rank, const FrameHeader& header, cluster::Bytes payload) {
  ++counters_.arrivals;
  Peer* peer = Find(rank);
  if (header.kind == FrameKind::kDispatch) {
    return server_.OnDispatch(rank, /*known=*/peer != nullptr, header, payload);
  }
  if (peer == nullptr) {
    ++counters_.stale_frames;
    return;
  }
  switch (header.kind) {
    case FrameKind::kCombine:
      return OnCombine(*peer, header, payload);
    case FrameKind::kNack:
      return OnNack(*peer, header, payload);
    case FrameKind::kHello:
      return Distrust(*peer, "a hello");
    default:
      network_.RefuseUnknown(rank, header);
  }
}

void MessageExchange::OnCombine(Peer& peer, const FrameHeader& header, cluster::Bytes payload) {
  Try* attempt = peer.Outstanding(header.dispatch, header.attempt);
  if (EPIC_MUTANT("any_try_takes_an_answer")) attempt = peer.AnyOutstanding();
  if (attempt == nullptr) {
    ++counters_.stale_frames;
    return;
  }
  Open& open = open_[attempt->ticket];
  const auto row_bytes = static_cast<size_t>(shape_.row_bytes());
  if (payload.size() != attempt->pairs.size() * row_bytes || header.layer != open.dispatch.layer ||
      cluster::WeightsOf(header) != shape_.weights) {
    return Distrust(
        peer, absl::StrCat("an answer of ", payload.size(), " bytes for layer ", header.layer,
                           " of weights ", NumberOf(cluster::WeightsOf(header)), " to ",
                           attempt->pairs.size(), " rows of layer ", open.dispatch.layer,
                           " of weights ", NumberOf(shape_.weights)));
  }
  for (size_t i = 0; i < attempt->pairs.size(); ++i) {
    std::memcpy(open.dispatch.out.Row<kernels::BF16>(attempt->pairs[i]),
                payload.data() + i * row_bytes, row_bytes);
  }
  open.unanswered -= static_cast<int64_t>(attempt->pairs.size());
  attempt->used = false;
  Pass(Failpoint::kCombineReceived);
  network_.GiveBack(Channel::kRows, peer.entry.rank);
  Pump(peer);
}

void MessageExchange::OnNack(Peer& peer, const FrameHeader& header, cluster::Bytes payload) {
  Try* attempt = peer.Outstanding(header.dispatch, header.attempt);
  if (attempt == nullptr) {
    ++counters_.stale_frames;
    return;
  }
  ++counters_.nacks_received;
  if (header.detail != static_cast<uint16_t>(NackReason::kNotHere)) {
    // The two ends disagree about what holds between them; a new connection starts empty.
    return Distrust(peer, absl::StrCat("a refusal for reason ", header.detail));
  }
  if (!EPIC_MUTANT("refusals_are_forgotten")) NoteAbsent(peer, *attempt, payload);
  Abandon(*attempt);
  network_.GiveBack(Channel::kRows, peer.entry.rank);
  RouteAll();
}

void MessageExchange::FailTries(Peer& peer) {
  for (Try& each : peer.tries) {
    if (each.used) Abandon(each);
  }
}

void MessageExchange::Abandon(Try& attempt) {
  attempt.used = false;
  ++counters_.dispatches_lost;
  Open& open = open_[attempt.ticket];
  if (!open.used || open.aborted) return;
  ++open.attempt;
  open.unrouted.insert(open.unrouted.end(), attempt.pairs.begin(), attempt.pairs.end());
}

bool MessageExchange::has_ready_ticket() const {
  return (open_[0].used && open_[0].done()) || (open_[1].used && open_[1].done());
}

// The experts that the refusal names, or all of the try if it names none of them: the same rows
// must not come back to the same refusal.
void MessageExchange::NoteAbsent(Peer& peer, const Try& refused, cluster::Bytes payload) {
  const model::ExpertDispatch& dispatch = open_[refused.ticket].dispatch;
  std::vector<uint16_t> named(payload.size() / sizeof(uint16_t));
  if (!named.empty()) std::memcpy(named.data(), payload.data(), named.size() * sizeof(uint16_t));
  const auto note = [&](bool all) {
    bool noted = false;
    for (const int32_t pair : refused.pairs) {
      const int32_t expert = dispatch.experts.As<int32_t>()[pair];
      if (!all && std::ranges::find(named, expert) == named.end()) continue;
      noted = true;
      if (!peer.refuses(dispatch.layer, expert)) peer.absent.emplace_back(dispatch.layer, expert);
    }
    return noted;
  };
  if (!note(false)) note(true);
}

void MessageExchange::Distrust(Peer& peer, const std::string& what) {
  ++counters_.bad_frames;
  peer.up = false;
  network_.Disconnect(
      peer.entry.rank, absl::DataLossError(absl::StrCat("rank ", peer.entry.rank, " sent ", what)));
}

}  // namespace epic::worker
