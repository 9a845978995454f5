// MessageExchange: what arrives. A frame changes something only if it answers a try that is
// outstanding at the partner that sends it. Any other frame is dropped and counted, or ends the
// connection.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/mutant.h"
#include "worker/exchange/message_exchange.h"
#include "worker/exchange/message_exchange_state.h"

namespace epic::worker {

using cluster::Channel;
using cluster::FrameHeader;
using cluster::FrameKind;
using cluster::NackReason;

void MessageExchange::OnUp(int rank) {
  ++counters_.arrivals;
  Partner* partner = Find(rank);
  if (partner == nullptr) return;
  partner->up = true;
  // Rows that waited for this host, and rows that another host has not been sent yet.
  RouteAll();
  const cluster::RankEntry entry = partner->entry;
  if (handlers_.on_link_up) handlers_.on_link_up(entry);
}

void MessageExchange::OnDown(int rank, const absl::Status& why) {
  ++counters_.arrivals;
  Partner* partner = Find(rank);
  if (partner == nullptr) return;
  partner->up = false;
  // What was under way may or may not have been computed there. Nobody can tell, and answers are
  // pure, so it is sent again.
  if (!EPIC_MUTANT("tries_outlive_connections")) FailTries(*partner);
  if (!EPIC_MUTANT("jobs_outlive_connections")) server_.Drop(rank);
  RouteAll();
  const cluster::RankEntry entry = partner->entry;
  if (handlers_.on_link_down) handlers_.on_link_down(entry, why);
}

void MessageExchange::OnFrame(int rank, const FrameHeader& header, cluster::Bytes payload) {
  ++counters_.arrivals;
  Partner* partner = Find(rank);
  if (header.kind == FrameKind::kDispatch) {
    return server_.OnDispatch(rank, /*known=*/partner != nullptr, header, payload);
  }
  if (partner == nullptr) {
    ++counters_.stale_frames;
    return;
  }
  switch (header.kind) {
    case FrameKind::kCombine:
      return OnCombine(*partner, header, payload);
    case FrameKind::kNack:
      return OnNack(*partner, header, payload);
    // The transport ends a connection on which a second hello comes; none must pass it.
    case FrameKind::kHello:
      return Distrust(*partner, "a hello");
    default:
      network_.RefuseUnknown(rank, header);
  }
}

void MessageExchange::OnCombine(Partner& partner, const FrameHeader& header,
                                cluster::Bytes payload) {
  // By dispatch and try: an answer to an earlier try of the same rows may still be on its way, and
  // its place in `out` may have been handed to another host.
  Try* tried = partner.Outstanding(header.dispatch, header.attempt);
  if (EPIC_MUTANT("any_try_takes_an_answer")) tried = partner.AnyOutstanding();
  if (tried == nullptr) {
    ++counters_.stale_frames;
    return;
  }
  OpenTicket& open = tickets_[tried->ticket];
  const auto row_bytes = static_cast<size_t>(shape_.row_bytes());
  if (payload.size() != tried->pairs.size() * row_bytes || header.layer != open.dispatch.layer ||
      cluster::WeightsOf(header) != shape_.weights) {
    return Distrust(
        partner, absl::StrCat("an answer of ", payload.size(), " bytes for layer ", header.layer,
                           " of weights ", NumberOf(cluster::WeightsOf(header)), " to ",
                           tried->pairs.size(), " rows of layer ", open.dispatch.layer,
                           " of weights ", NumberOf(shape_.weights)));
  }
  for (size_t i = 0; i < tried->pairs.size(); ++i) {
    std::memcpy(open.dispatch.out.Row<kernels::BF16>(tried->pairs[i]),
                payload.data() + i * row_bytes, row_bytes);
  }
  CHECK_GE(open.unanswered, static_cast<int64_t>(tried->pairs.size()))
      << "ticket " << tried->ticket;
  open.unanswered -= static_cast<int64_t>(tried->pairs.size());
  tried->used = false;
  Pass(Failpoint::kCombineReceived);
  network_.GiveBack(Channel::kRows, partner.entry.rank);
  Pump(partner);
}

void MessageExchange::OnNack(Partner& partner, const FrameHeader& header, cluster::Bytes payload) {
  Try* tried = partner.Outstanding(header.dispatch, header.attempt);
  if (tried == nullptr) {
    ++counters_.stale_frames;
    return;
  }
  ++counters_.nacks_received;
  if (header.detail != static_cast<uint16_t>(NackReason::kNotHere)) {
    // The two ends disagree about what holds between them; a new connection starts empty.
    return Distrust(partner, absl::StrCat("a refusal for reason ", header.detail));
  }
  // Before the rows are routed again, so that they do not go back to the same host.
  if (!EPIC_MUTANT("refusals_are_forgotten")) NoteAbsent(partner, *tried, payload);
  Abandon(*tried);
  network_.GiveBack(Channel::kRows, partner.entry.rank);
  RouteAll();
}

// The experts that the refusal names, or all of the try if it names none of them: the same rows
// must not come back to the same refusal.
void MessageExchange::NoteAbsent(Partner& partner, const Try& refused, cluster::Bytes payload) {
  const model::ExpertDispatch& dispatch = tickets_[refused.ticket].dispatch;
  std::vector<uint16_t> named(payload.size() / sizeof(uint16_t));
  if (!named.empty()) std::memcpy(named.data(), payload.data(), named.size() * sizeof(uint16_t));
  const auto note = [&](bool all) {
    bool noted = false;
    for (const int32_t pair : refused.pairs) {
      const int32_t expert = dispatch.experts.As<int32_t>()[pair];
      if (!all && std::ranges::find(named, expert) == named.end()) continue;
      noted = true;
      if (partner.refuses(dispatch.layer, expert)) continue;
      partner.absent.emplace_back(dispatch.layer, expert);
    }
    return noted;
  };
  if (!note(false)) note(true);
}

// `up` is cleared at once, although on_down follows only with the next poll: nothing more may be
// sent on a connection whose two ends disagree.
void MessageExchange::Distrust(Partner& partner, const std::string& what) {
  ++counters_.bad_frames;
  partner.up = false;
  const int rank = partner.entry.rank;
  network_.Disconnect(rank, absl::DataLossError(absl::StrCat("rank ", rank, " sent ", what)));
}

}  // namespace epic::worker
