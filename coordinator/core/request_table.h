// RequestTable: the requests that are accepted and not ended, and the sequences that their choices
// are computed as. A plain object.
//
//   ASSIGN_OR_RETURN(const uint64_t request, table.Add(std::move(asked)));
//   for (const uint64_t sequence : table.Begin(request)) …;
//   table.EndSequence(sequence, v1::FINISH_REASON_STOP, absl::OkStatus());  // each, once
//   for (const auto& journal : table.TakeGrown()) journal->Notify();
//
// A request is accepted by Add and begins later, on the loop; its sequences exist from then on. It
// ends with its last sequence. Ids of requests and sequences are given once in a life of the table.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "coordinator/admission/admission.h"
#include "coordinator/journal/journal.h"
#include "coordinator/request.h"
#include "text/answer_parser.h"

namespace epic::coordinator {

class RequestTable {
 public:
  struct Entry {
    Request request;  // its sampling has a seed: its own, or one that the core draws
    std::shared_ptr<Journal> journal;
    std::vector<uint64_t> sequences;  // [choice]; none before it begins
    TimerId timer = 0;                // of its deadline; 0: none. Core sets and cancels it.
  };
  struct Sequence {
    uint64_t request = 0;
    int choice = 0;
    uint32_t attempt = 0;  // the submission whose tokens are taken; 0: none so far
    std::optional<text::AnswerParser> parser;  // none: no stop string can end it
  };

  explicit RequestTable(const AdmissionLimits& limits) : admission_(limits) {}

  // Accepts a request. AlreadyExists if one with its name (Request::id) runs; ResourceExhausted,
  // naming value and limit, if the queue is full.
  absl::StatusOr<uint64_t> Add(Request request);
  // Makes the sequences of a request that has not begun.
  const std::vector<uint64_t>& Begin(uint64_t request);

  // Seals the choice of a sequence, and forgets it. Returns the request if this was its last one.
  std::optional<Entry> EndSequence(uint64_t sequence, FinishReason finish, absl::Status error);
  // Ends a request that has not begun.
  Entry EndBeforeBegin(uint64_t request, FinishReason finish, const absl::Status& error);

  // By the name that the client knows; none: it does not run.
  std::optional<uint64_t> Find(const std::string& name) const;
  // Null: it has ended.
  Entry* request(uint64_t id);
  Sequence* sequence(uint64_t id);
  // The request of a sequence, which must not have ended.
  Entry& RequestOf(uint64_t sequence);

  // The streams of the request have something new to read.
  void NoteGrowth(uint64_t request);
  // The journals of the requests that were noted since the last call, each once.
  std::vector<std::shared_ptr<Journal>> TakeGrown();

  const std::map<uint64_t, Entry>& requests() const { return requests_; }

 private:
  Entry Take(uint64_t request);

  Admission admission_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Entry> requests_;
  std::map<std::string, uint64_t> names_;
  std::map<uint64_t, Sequence> sequences_;
  std::map<uint64_t, std::shared_ptr<Journal>> grown_;  // by request
};

}  // namespace epic::coordinator
