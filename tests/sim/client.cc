#include "tests/sim/client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/toy.h"

namespace epic::sim {

namespace {

constexpr absl::Duration kAgain = absl::Milliseconds(50);

}  // namespace

Client::Client(SimLoop& loop, coordinator::Core& core, Trace& trace, int number, RequestPlan plan,
               int expert_count, absl::Duration stalled, ClientHandlers handlers)
    : loop_(loop),
      core_(core),
      trace_(trace),
      number_(number),
      plan_(std::move(plan)),
      expected_(OracleTokens(expert_count, plan_.prompt, plan_.sampling, plan_.max_tokens,
                             plan_.stop_token)),
      stalled_(stalled),
      handlers_(std::move(handlers)),
      deadline_(loop.Now() + plan_.at + plan_.deadline) {}

void Client::Submit() {
  if (loop_.Now() >= deadline_) {
    gone_ = true;
    return;
  }
  coordinator::Request request;
  request.id = absl::StrCat("request-", number_);
  request.prompt = plan_.prompt;
  request.sampling.set_temperature(plan_.sampling.temperature);
  request.sampling.set_seed(plan_.sampling.seed);
  request.sampling.set_repetition_penalty(plan_.sampling.repetition_penalty);
  request.max_tokens = plan_.max_tokens;
  request.deadline = deadline_;
  if (plan_.stop_token >= 0) request.stop_token_ids = {plan_.stop_token};
  auto stream = core_.Submit(std::move(request));
  if (!stream.ok()) {
    loop_.At(loop_.Now() + kAgain, [this] { Submit(); });
    return;
  }
  stream_ = *std::move(stream);
  stream_->SetListener([this] { OnGrown(); });
  if (plan_.patience == Patience::kWaits) return;
  loop_.At(loop_.Now() + plan_.waits, [this] { LoseInterest(); });
}

void Client::LoseInterest() {
  if (plan_.patience == Patience::kLeaves) {
    gone_ = true;
    stream_.reset();
    return;
  }
  const absl::Status status = core_.Cancel(absl::StrCat("request-", number_));
  cancelled_ = status.ok();
  if (!status.ok() && !ended_) Violation("it is not over, and the core does not know it");
}

void Client::OnGrown() {
  if (stream_ == nullptr) return;
  const coordinator::Slice slice = stream_->Read(0, token_count());
  if (ended_ && !slice.tokens.empty()) Violation("has more tokens after its end");
  for (const coordinator::JournalToken& token : slice.tokens) Judge(token);
  if (slice.finish == v1::FINISH_REASON_NONE || ended_) return;
  ended_ = true;
  JudgeEnd(slice);
}

void Client::Judge(const coordinator::JournalToken& token) {
  const size_t position = tokens_.size();
  tokens_.push_back(token.token);
  trace_.Add(static_cast<uint64_t>(number_) * 1000 + static_cast<uint64_t>(token.token));
  const int32_t expected = position < expected_.size() ? expected_[position] : -1;
  if (expected == token.token) return;
  Violation(absl::StrCat("position ", position, ": token ", token.token, ", one rank alone has ",
                         expected));
}

void Client::JudgeEnd(const coordinator::Slice& slice) {
  if (slice.finish == v1::FINISH_REASON_ERROR) return JudgeError(slice.error);
  if (slice.finish == v1::FINISH_REASON_CANCELLED && cancelled_) return;
  if (tokens_ != expected_) {
    Violation(absl::StrCat("ended with ", tokens_.size(), " tokens of ", expected_.size()));
  }
  const bool stopped = expected_.back() == plan_.stop_token;
  if (slice.finish != (stopped ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH)) {
    Violation(absl::StrCat("ended for reason ", static_cast<int>(slice.finish)));
  }
}

void Client::JudgeError(const absl::Status& error) {
  // protocol.md §5: what seems to kill a rank alone twice is quarantined. Machines that die at
  // random may make it seem so.
  if (absl::IsInternal(error) && handlers_.excused()) return;
  if (!absl::IsDeadlineExceeded(error)) {
    return Violation(absl::StrCat("failed: ", std::string(error.message())));
  }
  const absl::Duration late = loop_.Now() - deadline_;
  if (late < absl::ZeroDuration() || late > stalled_) {
    Violation(absl::StrCat("ended ", absl::FormatDuration(late), " after its deadline"));
  }
}

std::string Client::Standing() const {
  return absl::StrCat("request ", number_, " has not ended: ", tokens_.size(), " of ",
                      expected_.size(), " tokens; ",
                      stream_ == nullptr ? core_.status().reason : "accepted");
}

void Client::Violation(const std::string& what) {
  handlers_.violation(absl::StrCat("request ", number_, ": ", what));
}

}  // namespace epic::sim
