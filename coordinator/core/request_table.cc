#include "coordinator/core/request_table.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::coordinator {
namespace {

// What a request may come to hold, at most; admission counts it for the request's whole life.
int64_t TokensOf(const Request& request) {
  return static_cast<int64_t>(request.prompt.size() + request.max_tokens) * request.choices;
}

}  // namespace

absl::StatusOr<uint64_t> RequestTable::Add(Request request) {
  CHECK_GT(request.choices, 0);
  // A name must mean one request, because Cancel finds the request by it.
  if (names_.contains(request.id)) {
    return absl::AlreadyExistsError(absl::StrCat("a request with id ", request.id, " is running"));
  }
  // Nothing may fail behind this: what is admitted is given back by Take alone.
  RETURN_IF_ERROR(admission_.Admit(TokensOf(request)));
  // Requests and sequences are numbered together, so a number in the log means one of them.
  const uint64_t id = next_id_++;
  names_[request.id] = id;
  Entry& entry = requests_[id];
  entry.journal = std::make_shared<Journal>(request.choices);
  entry.request = std::move(request);
  return id;
}

const std::vector<uint64_t>& RequestTable::Begin(uint64_t request) {
  Entry& entry = requests_.at(request);
  CHECK(entry.sequences.empty()) << "request " << request << " begins twice";
  for (int choice = 0; choice < entry.request.choices; ++choice) {
    const uint64_t id = next_id_++;
    Sequence& sequence = sequences_[id];
    sequence.request = request;
    sequence.choice = choice;
    entry.sequences.push_back(id);
  }
  return entry.sequences;
}

std::optional<RequestTable::Entry> RequestTable::EndSequence(uint64_t sequence, FinishReason finish,
                                                             absl::Status error) {
  const auto found = sequences_.find(sequence);
  CHECK(found != sequences_.end()) << "sequence " << sequence << " has ended already";
  const uint64_t request = found->second.request;
  Journal& journal = *requests_.at(request).journal;
  journal.Seal(found->second.choice, finish, std::move(error));
  // This comes before Take, because it finds the journal in the entry.
  NoteGrowth(request);
  sequences_.erase(found);
  if (!journal.all_sealed()) return std::nullopt;
  return Take(request);
}

RequestTable::Entry RequestTable::EndBeforeBegin(uint64_t request, FinishReason finish,
                                                 const absl::Status& error) {
  Entry& entry = requests_.at(request);
  CHECK(entry.sequences.empty()) << "request " << request << " has begun";
  for (int choice = 0; choice < entry.request.choices; ++choice) {
    entry.journal->Seal(choice, finish, error);
  }
  NoteGrowth(request);
  return Take(request);
}

// The one place where a request leaves: what it was admitted with is released once.
RequestTable::Entry RequestTable::Take(uint64_t request) {
  const auto found = requests_.find(request);
  CHECK(found != requests_.end()) << "request " << request << " has ended already";
  Entry entry = std::move(found->second);
  admission_.Release(TokensOf(entry.request));
  names_.erase(entry.request.id);
  requests_.erase(found);
  return entry;
}

std::optional<uint64_t> RequestTable::Find(const std::string& name) const {
  const auto found = names_.find(name);
  if (found == names_.end()) return std::nullopt;
  return found->second;
}

RequestTable::Entry* RequestTable::request(uint64_t id) {
  const auto found = requests_.find(id);
  return found == requests_.end() ? nullptr : &found->second;
}

RequestTable::Sequence* RequestTable::sequence(uint64_t id) {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : &found->second;
}

RequestTable::Entry& RequestTable::RequestOf(uint64_t sequence) {
  return requests_.at(sequences_.at(sequence).request);
}

// The journal is held from here on: its request may be gone before the streams are told.
void RequestTable::NoteGrowth(uint64_t request) { grown_[request] = requests_.at(request).journal; }

std::vector<std::shared_ptr<Journal>> RequestTable::TakeGrown() {
  // The order is that of the requests, so simulated runs repeat (protocol.md 9.3).
  std::vector<std::shared_ptr<Journal>> grown;
  for (auto& [request, journal] : grown_) grown.push_back(std::move(journal));
  grown_.clear();
  return grown;
}

}  // namespace epic::coordinator
