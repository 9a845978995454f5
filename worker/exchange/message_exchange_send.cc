// MessageExchange: what is sent, and when.
#include <cstdint>

#include "base/check.h"
#include "base/failpoint.h"
#include "worker/exchange/message_exchange.h"
#include "worker/exchange/message_exchange_state.h"

namespace epic::worker {

using cluster::Channel;
using cluster::FrameHeader;
using cluster::FrameKind;

// Sends to one partner, oldest ticket first, until room or work runs out. Afterwards the queues are
// empty, or no credit is left, or the link is down. A function that adds to a queue or gains a
// credit must therefore call this; no timer finds the rest.
void MessageExchange::Pump(Partner& partner) {
  while (partner.up && network_.HasRoom(Channel::kRows, partner.entry.rank) &&
         partner.FreeTry() != nullptr) {
    const OpenTicket *first = &tickets_[0], *second = &tickets_[1];
    const Ticket older = first->number <= second->number ? 0 : 1;
    const Ticket ticket = !partner.queues[older].empty() ? older : 1 - older;
    if (partner.queues[ticket].empty() || !SendNext(partner, ticket)) return;
  }
}

bool MessageExchange::SendNext(Partner& partner, Ticket ticket) {
  const OpenTicket& open = tickets_[ticket];
  Partner::Queue& queue = partner.queues[ticket];
  const int32_t k = shape_.experts_per_token;
  const auto pairs_max = static_cast<size_t>(limits_.pairs_max(shape_));
  Try& tried = *partner.FreeTry();
  tried.pairs.clear();
  frame_pairs_.clear();
  frame_parts_.assign(1, {});  // the head's place: its length is known once the pairs are
  int row_count = 0;
  int32_t row = -1;
  for (size_t i = queue.next; i < queue.pairs.size() && tried.pairs.size() < pairs_max; ++i) {
    const int32_t pair = queue.pairs[i];
    if (pair / k != row) {
      if (row_count == limits_.tile_rows_max) break;
      AddFrameRow(open.dispatch.rows, pair / k, /*follows=*/pair / k == row + 1 && row_count > 0);
      row = pair / k;
      ++row_count;
    }
    tried.pairs.push_back(pair);
    const int32_t expert = open.dispatch.experts.As<int32_t>()[pair];
    frame_pairs_.push_back({static_cast<uint16_t>(row_count - 1), static_cast<uint16_t>(expert)});
  }
  WriteDispatchHead(frame_pairs_, row_count, frame_head_);
  frame_parts_[0] = frame_head_;
  const uint16_t decode = open.dispatch.decode ? cluster::kFrameDecode : 0;
  const FrameHeader header{.kind = FrameKind::kDispatch,
                           .layer = static_cast<uint16_t>(open.dispatch.layer),
                           .attempt = open.try_number,
                           .term = map_.version.term,
                           .map_number = map_.version.number,
                           .dispatch = next_dispatch_,
                           .flags = static_cast<uint16_t>(
                               decode | cluster::WeightsFlags(shape_.weights))};
  CHECK(!tried.pairs.empty()) << "rank " << partner.entry.rank << ": a dispatch without rows";
  if (!network_.SendOnCredit(Channel::kRows, partner.entry.rank, header, frame_parts_)) {
    return false;
  }
  // Only now: a frame that was not sent leaves try, queue and number as they were.
  tried.used = true;
  tried.dispatch = next_dispatch_++;
  tried.try_number = open.try_number;
  tried.ticket = ticket;
  tried.sent = clock_.Now();
  ++counters_.dispatches_sent;
  Pass(Failpoint::kDispatchSent);
  queue.next += tried.pairs.size();
  if (queue.empty()) queue.Clear();
  return true;
}

// Neighbouring rows become one part, so that a long frame costs few system calls. `follows`: the
// row lies behind the one added before.
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

}  // namespace epic::worker
