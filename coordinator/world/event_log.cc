#include "coordinator/world/event_log.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/log.h"
#include "nlohmann/json.hpp"

namespace epic::coordinator {
namespace {

std::string LineOf(const Event& event) {
  nlohmann::ordered_json line = {{"number", event.number},
                                 {"time", absl::FormatTime(event.time, absl::UTCTimeZone())},
                                 {"kind", NameOf(event.kind)}};
  if (event.rank >= 0) line["rank"] = event.rank;
  // A reader that takes JSON numbers for doubles would lose digits of 64 bits, so this is text.
  if (event.generation != 0) line["generation"] = absl::StrFormat("%016x", event.generation);
  line["text"] = event.text;
  // Texts of workers need not be UTF-8.
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

absl::Status EventLog::OpenFile(const Env& env, const std::string& path) {
  absl::StatusOr<std::unique_ptr<LineWriter>> file =
      LineWriter::Open(env.storage, env.threads, path);
  if (!file.ok()) {
    return {file.status().code(), absl::StrCat("--event-log: ", file.status().message())};
  }
  const absl::MutexLock lock(&mutex_);
  file_ = *std::move(file);
  return absl::OkStatus();
}

void EventLog::Append(EventKind kind, int rank, uint64_t generation, std::string text) {
  {
    const absl::MutexLock lock(&mutex_);
    events_.push_back({.number = ++last_,
                       .time = clock_.Now(),
                       .kind = kind,
                       .rank = rank,
                       .generation = generation,
                       .text = std::move(text)});
    // Memory is bounded; the file, where there is one, has the older events.
    if (events_.size() > kKept) events_.pop_front();
    CHECK_LE(events_.size(), kKept);
    const Event& event = events_.back();
    // Under the lock, log and file have the events in the order of their numbers. The file's writer
    // only queues, so no disk holds up the lock.
    if (rank >= 0) {
      LOG_INFO("{}: rank {}: {}", NameOf(event.kind), rank, event.text);
    } else {
      LOG_INFO("{}: {}", NameOf(event.kind), event.text);
    }
    if (file_ != nullptr) file_->Append(LineOf(event));
  }
  // Not under the events' lock: a listener reads them.
  const absl::MutexLock lock(&listeners_mutex_);
  for (const auto& [id, listener] : listeners_) listener();
}

std::vector<Event> EventLog::Read(uint64_t from, size_t count_max) const {
  const absl::MutexLock lock(&mutex_);
  // Numbers ascend without gaps, also after the oldest events were dropped.
  const auto begin = std::ranges::lower_bound(events_, from, {}, &Event::number);
  size_t count = static_cast<size_t>(events_.end() - begin);
  if (count_max > 0) count = std::min(count, count_max);
  return {begin, begin + static_cast<ptrdiff_t>(count)};
}

uint64_t EventLog::last() const {
  const absl::MutexLock lock(&mutex_);
  return last_;
}

int64_t EventLog::failed_writes() const {
  const absl::MutexLock lock(&mutex_);
  return file_ == nullptr ? 0 : file_->lost();
}

void EventLog::FlushFile() {
  const absl::MutexLock lock(&mutex_);
  if (file_ != nullptr) file_->Flush();
}

EventLog::ListenerId EventLog::AddListener(std::function<void()> listener) {
  const absl::MutexLock lock(&listeners_mutex_);
  CHECK(listener != nullptr);
  listeners_[next_listener_] = std::move(listener);
  return next_listener_++;
}

void EventLog::RemoveListener(ListenerId listener) {
  const absl::MutexLock lock(&listeners_mutex_);
  // Listeners are called under the same lock, so none is under way here. A listener that removed
  // itself would wait for its own end.
  listeners_.erase(listener);
}

}  // namespace epic::coordinator
