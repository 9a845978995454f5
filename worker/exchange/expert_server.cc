#include "worker/exchange/expert_server.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/failpoint.h"
#include "base/mutant.h"

namespace epic::worker {

using cluster::Channel;
using cluster::FrameHeader;
using cluster::FrameKind;
using cluster::NackReason;
using kernels::Tensor;

namespace {

// The alignment that kernels require of a tensor's rows (kernels/backend.h).
constexpr uintptr_t kTensorAlignment = 64;

}  // namespace

ExpertServer::ExpertServer(const ExchangeShape& shape, const ExchangeLimits& limits,
                           const Clock& clock, cluster::PeerNetwork& network, ExpertSet& experts,
                           LocalHandlers local)
    : shape_(shape),
      limits_(limits),
      clock_(clock),
      network_(network),
      experts_(experts),
      local_(std::move(local)) {
  CHECK(limits.tile_rows_max > 0 && limits.tile_rows_max <= UINT16_MAX) << limits.tile_rows_max;
  CHECK_LE(PayloadBytesMax(shape, limits), int64_t{cluster::kPayloadBytesMax});
}

void ExpertServer::OnDispatch(int peer, bool known, const FrameHeader& header,
                              cluster::Bytes payload) {
  if (!known) {
    ++counters_.refused_revoked;
    return Refuse(peer, header, NackReason::kRevoked);
  }
  // An honest sender keeps to its credits. A sender that does not has forgotten what it sent, or it
  // wants this rank's memory.
  const auto queued = std::ranges::count(jobs_, peer, &Job::peer);
  if (queued >= limits_.tiles_in_flight_max) {
    ++counters_.refused_no_credit;
    return Refuse(peer, header, NackReason::kNoCredit);
  }
  // Before the payload is read: weights of another model may have another shape. The sender takes
  // the refusal for one of all its experts, and looks for another host.
  if (cluster::WeightsOf(header) != shape_.weights) {
    ++counters_.refused_not_here;
    return Refuse(peer, header, NackReason::kNotHere);
  }
  const auto bytes = static_cast<int64_t>(payload.size());
  if (header.layer >= shape_.layer_count || bytes == 0 ||
      bytes > PayloadBytesMax(shape_, limits_)) {
    ++counters_.refused_bad_frame;
    return Refuse(peer, header, NackReason::kBadFrame);
  }
  // Copied before it is judged: on shared memory the sender could change what was checked.
  Job job = TakeJob();
  std::memcpy(job.bytes.Reserve(bytes), payload.data(), payload.size());
  const auto frame = ReadDispatch(shape_, limits_, {job.bytes.data(), payload.size()});
  if (!frame) {
    spare_.push_back(std::move(job));
    ++counters_.refused_bad_frame;
    return Refuse(peer, header, NackReason::kBadFrame);
  }
  job.peer = peer;
  job.decode = (header.flags & cluster::kFrameDecode) != 0;
  job.layer = header.layer;
  job.arrived = clock_.Now();
  job.header = header;
  job.frame = *frame;
  jobs_.push_back(std::move(job));
  Pass(Failpoint::kDispatchReceived);
}

void ExpertServer::Drop(int peer) {
  for (Job& job : jobs_) job.done = job.done || job.peer == peer;
  RemoveDone();
}

void ExpertServer::AddLocal(int ticket, const model::ExpertDispatch& dispatch,
                            std::span<const int32_t> pairs) {
  CHECK(!pairs.empty() && std::ranges::is_sorted(pairs)) << "ticket " << ticket;
  CHECK_EQ(dispatch.experts.cols, shape_.experts_per_token);
  Job job = TakeJob();
  job.peer = -1;
  job.decode = dispatch.decode;
  job.layer = dispatch.layer;
  job.arrived = clock_.Now();
  job.ticket = ticket;
  job.dispatch = dispatch;
  job.pairs.assign(pairs.begin(), pairs.end());
  job.next_pair = 0;
  jobs_.push_back(std::move(job));
}

void ExpertServer::DropLocal(int ticket) {
  for (Job& job : jobs_) job.done = job.done || (job.peer < 0 && job.ticket == ticket);
  RemoveDone();
}

bool ExpertServer::Commit() {
  if (jobs_.empty()) return false;
  ChooseParts();
  if (!parts_.empty()) {
    Gather();
    experts_.Compute(parts_[0].job->layer, rows_, pairs_, out_);
    ++counters_.commits;
    Pass(Failpoint::kExpertsComputed);
    Answer();
  }
  RemoveDone();
  // Last, for the handler may add rows, and so move the jobs.
  const std::vector<LocalPair> missing = std::exchange(missing_pairs_, {});
  if (!missing.empty()) local_.on_missing(missing);
  return true;
}

bool ExpertServer::Urgent(const Job& job) const {
  return job.decode || clock_.Now() - job.arrived > limits_.prompt_patience;
}

// Who decides the layer of the next group. Urgent rows come first because a whole step of another
// rank waits for them; the patience bounds how long a stream of them can hold up a prompt.
const ExpertServer::Job& ExpertServer::Head() const {
  const auto urgent = std::ranges::find_if(jobs_, [&](const Job& job) { return Urgent(job); });
  return urgent != jobs_.end() ? *urgent : jobs_.front();
}

void ExpertServer::ChooseParts() {
  parts_.clear();
  rows_left_ = limits_.tile_rows_max;
  pairs_left_ = int64_t{limits_.tile_rows_max} * shape_.experts_per_token;
  const Job& head = Head();
  const int layer = head.layer;
  // Prompt rows would only delay the decode rows that they join.
  const bool urgent = Urgent(head);
  for (Job& job : jobs_) {
    if (job.layer != layer || (urgent && !Urgent(job))) continue;
    if (!(job.peer < 0 ? AddLocalPart(job) : AddFrame(job))) return;
  }
}

// A frame is taken whole, for its answer is one frame. False: there is no room for it in this
// group, and nothing behind it may overtake it.
bool ExpertServer::AddFrame(Job& job) {
  const auto pair_count = static_cast<int64_t>(job.frame.pairs.size());
  if (job.frame.row_count > rows_left_ || pair_count > pairs_left_) return false;
  if (Refused(job)) return true;
  rows_left_ -= job.frame.row_count;
  pairs_left_ -= pair_count;
  parts_.push_back({&job, 0, job.frame.pairs.size()});
  job.done = true;
  return true;
}

// Judged only now and not on arrival: an order may have dropped or brought experts meanwhile. One
// missing expert refuses the whole frame, since an answer has a row for every pair.
bool ExpertServer::Refused(Job& job) {
  missing_experts_.clear();
  for (const FramePair& pair : job.frame.pairs) {
    if (!experts_.Holds(job.layer, pair.expert)) missing_experts_.push_back(pair.expert);
  }
  if (missing_experts_.empty()) return false;
  std::ranges::sort(missing_experts_);
  const auto repeated = std::ranges::unique(missing_experts_);
  missing_experts_.erase(repeated.begin(), repeated.end());
  ++counters_.refused_not_here;
  Refuse(job.peer, job.header, NackReason::kNotHere,
         std::as_bytes(std::span<const uint16_t>(missing_experts_)));
  job.done = true;
  return true;
}

// Takes as many pairs as fit, for own answers need no frame; false if some are left over.
bool ExpertServer::AddLocalPart(Job& job) {
  SkipMissing(job);
  const int64_t k = shape_.experts_per_token;
  const size_t first = job.next_pair;
  int64_t row = -1;
  while (job.next_pair < job.pairs.size() && pairs_left_ > 0) {
    const int64_t row_of_pair = job.pairs[job.next_pair] / k;
    if (row_of_pair != row && rows_left_ == 0) break;
    rows_left_ -= row_of_pair != row ? 1 : 0;
    row = row_of_pair;
    --pairs_left_;
    ++job.next_pair;
  }
  if (job.next_pair > first) parts_.push_back({&job, first, job.next_pair - first});
  job.done = job.next_pair == job.pairs.size();
  return job.done;
}

void ExpertServer::SkipMissing(Job& job) {
  const auto dropped = [&](int32_t pair) {
    return !experts_.Holds(job.layer, job.dispatch.experts.As<int32_t>()[pair]);
  };
  const auto begin = job.pairs.begin() + static_cast<std::ptrdiff_t>(job.next_pair);
  for (auto pair = begin; pair != job.pairs.end(); ++pair) {
    if (dropped(*pair)) missing_pairs_.push_back({job.ticket, *pair});
  }
  job.pairs.erase(std::remove_if(begin, job.pairs.end(), dropped), job.pairs.end());
}

// Makes rows_, pairs_ and out_ of the parts. A part that is alone is not copied but read where it
// lies: a frame in the job's buffer, own rows in the step's. Own rows are also answered in place
// where their pairs have no gap and their place is aligned: then `out_` is the ticket's own `out`,
// and AnswerLocal finds nothing to copy.
void ExpertServer::Gather() {
  CHECK(!parts_.empty());
  pairs_.clear();
  row_count_ = 0;
  const Part& first = parts_[0];
  const bool alone = parts_.size() == 1;
  if (alone && first.job->peer < 0) {
    const Tensor experts = first.job->dispatch.experts;
    const auto k = static_cast<int32_t>(experts.cols);
    const std::span pairs = std::span(first.job->pairs).subspan(first.first_pair, first.pair_count);
    for (const int32_t pair : pairs) pairs_.push_back({pair / k, experts.As<int32_t>()[pair]});
    rows_ = first.job->dispatch.rows;
    const Tensor& out = first.job->dispatch.out;
    auto* place = out.Row<kernels::BF16>(pairs.front());
    const bool aligned = reinterpret_cast<uintptr_t>(place) % kTensorAlignment == 0;
    if (aligned && pairs.back() - pairs.front() + 1 == static_cast<int32_t>(pairs.size())) {
      out_ = {out.dtype, static_cast<int64_t>(pairs.size()), out.cols, place};
      return;
    }
  } else {
    gathered_.Reserve(alone ? 0 : limits_.tile_rows_max * shape_.row_bytes());
    for (const Part& part : parts_) {
      part.job->peer < 0 ? GatherLocal(part) : GatherFrame(*part.job);
    }
    const std::byte* rows = alone ? first.job->frame.rows : gathered_.data();
    rows_ = {kernels::DType::kBF16, row_count_, shape_.hidden, const_cast<std::byte*>(rows)};
  }
  const auto pair_count = static_cast<int64_t>(pairs_.size());
  out_ = {kernels::DType::kBF16, pair_count, shape_.hidden,
          answers_.Reserve(pair_count * shape_.row_bytes())};
}

void ExpertServer::GatherFrame(const Job& job) {
  for (const FramePair& pair : job.frame.pairs) {
    const int64_t first_row = EPIC_MUTANT("gathered_rows_shift") ? 0 : row_count_;
    pairs_.push_back({static_cast<int32_t>(first_row + pair.row), pair.expert});
  }
  if (parts_.size() > 1) {
    std::memcpy(gathered_.data() + row_count_ * shape_.row_bytes(), job.frame.rows,
                job.frame.row_count * shape_.row_bytes());
  }
  row_count_ += job.frame.row_count;
}

void ExpertServer::GatherLocal(const Part& part) {
  const model::ExpertDispatch& dispatch = part.job->dispatch;
  int64_t row = -1;
  for (size_t i = part.first_pair; i < part.first_pair + part.pair_count; ++i) {
    const int32_t pair = part.job->pairs[i];
    if (pair / dispatch.experts.cols != row) {
      row = pair / dispatch.experts.cols;
      std::memcpy(gathered_.data() + row_count_ * shape_.row_bytes(),
                  dispatch.rows.Row<kernels::BF16>(row), shape_.row_bytes());
      ++row_count_;
    }
    pairs_.push_back({static_cast<int32_t>(row_count_ - 1), dispatch.experts.As<int32_t>()[pair]});
  }
}

// The answers lie in the order of the parts and, within a part, of its pairs.
void ExpertServer::Answer() {
  CHECK_EQ(out_.rows, static_cast<int64_t>(pairs_.size()));
  const auto* answers = out_.As<std::byte>();
  for (const Part& part : parts_) {
    const auto pair_count = static_cast<int64_t>(part.pair_count);
    const int64_t bytes = pair_count * shape_.row_bytes();
    if (part.job->peer < 0) {
      AnswerLocal(part, answers);
    } else {
      const cluster::Bytes payload(answers, bytes);
      // Without a credit (rule 3.4). False: the connection is down, and its on_down follows.
      network_.Send(Channel::kRows, part.job->peer,
                    ReplyTo(part.job->header, FrameKind::kCombine), {&payload, 1});
      Pass(Failpoint::kCombineSent);
      ++counters_.frames_served;
      counters_.rows_served += pair_count;
    }
    answers += bytes;
  }
}

void ExpertServer::AnswerLocal(const Part& part, const std::byte* answers) {
  const Tensor& out = part.job->dispatch.out;
  for (size_t i = 0; i < part.pair_count; ++i) {
    auto* target = out.Row<kernels::BF16>(part.job->pairs[part.first_pair + i]);
    const std::byte* answer = answers + static_cast<int64_t>(i) * shape_.row_bytes();
    if (answer == static_cast<void*>(target)) break;  // computed in place, all of it
    std::memcpy(target, answer, shape_.row_bytes());
  }
  const auto pair_count = static_cast<int64_t>(part.pair_count);
  counters_.local_rows += pair_count;
  local_.on_done(part.job->ticket, pair_count);
}

FrameHeader ExpertServer::ReplyTo(const FrameHeader& header, FrameKind kind) const {
  return {.kind = kind,
          .layer = header.layer,
          .attempt = header.attempt,
          .term = version_.term,
          .map_number = version_.number,
          .dispatch = header.dispatch,
          .flags = static_cast<uint16_t>(header.flags & cluster::kFrameWeights)};
}

void ExpertServer::Refuse(int peer, const FrameHeader& header, NackReason reason,
                          cluster::Bytes payload) {
  FrameHeader reply = ReplyTo(header, FrameKind::kNack);
  reply.detail = static_cast<uint16_t>(reason);
  network_.Send(Channel::kRows, peer, reply, {&payload, 1});
}

// Keeps the order of arrival, and the memory of the jobs that are done.
void ExpertServer::RemoveDone() {
  size_t kept = 0;
  for (size_t i = 0; i < jobs_.size(); ++i) {
    if (jobs_[i].done) {
      spare_.push_back(std::move(jobs_[i]));
    } else {
      if (kept != i) jobs_[kept] = std::move(jobs_[i]);
      ++kept;
    }
  }
  jobs_.resize(kept);
  parts_.clear();
}

ExpertServer::Job ExpertServer::TakeJob() {
  if (spare_.empty()) return {};
  Job job = std::move(spare_.back());
  spare_.pop_back();
  job.done = false;
  return job;
}

}  // namespace epic::worker
