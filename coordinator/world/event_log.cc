#include "coordinator/world/event_log.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "nlohmann/json.hpp"

namespace epic::coordinator {

EventLog::~EventLog() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status EventLog::OpenFile(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("--event-log: cannot write ", path, ": ", std::strerror(errno)));
  }
  const std::lock_guard lock(mutex_);
  if (file_ != nullptr) std::fclose(file_);
  file_ = file;
  return absl::OkStatus();
}

void EventLog::Append(std::string kind, int rank, uint64_t generation, std::string text) {
  {
    const std::lock_guard lock(mutex_);
    events_.push_back({.number = ++last_,
                       .time = clock_.Now(),
                       .kind = std::move(kind),
                       .rank = rank,
                       .generation = generation,
                       .text = std::move(text)});
    if (events_.size() > kKept) events_.pop_front();
    const Event& event = events_.back();
    if (rank >= 0) {
      LOG_INFO("{}: rank {}: {}", event.kind, rank, event.text);
    } else {
      LOG_INFO("{}: {}", event.kind, event.text);
    }
    Write(event);
  }
  const std::lock_guard lock(listeners_mutex_);
  for (const auto& [id, listener] : listeners_) listener();
}

void EventLog::Write(const Event& event) {
  if (file_ == nullptr) return;
  nlohmann::ordered_json line = {{"number", event.number},
                                 {"time", absl::FormatTime(event.time, absl::UTCTimeZone())},
                                 {"kind", event.kind}};
  if (event.rank >= 0) line["rank"] = event.rank;
  if (event.generation != 0) line["generation"] = absl::StrFormat("%016x", event.generation);
  line["text"] = event.text;
  // Texts of workers need not be UTF-8.
  const std::string bytes =
      line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  const bool whole = std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size();
  if (std::fflush(file_) == 0 && whole) return;
  std::clearerr(file_);
  if (failed_writes_++ == 0) LOG_ERROR("the event log's file takes no more: serving goes on");
}

std::vector<Event> EventLog::Read(uint64_t from, size_t count_max) const {
  const std::lock_guard lock(mutex_);
  const auto begin = std::ranges::lower_bound(events_, from, {}, &Event::number);
  size_t count = static_cast<size_t>(events_.end() - begin);
  if (count_max > 0) count = std::min(count, count_max);
  return {begin, begin + static_cast<ptrdiff_t>(count)};
}

uint64_t EventLog::last() const {
  const std::lock_guard lock(mutex_);
  return last_;
}

int64_t EventLog::failed_writes() const {
  const std::lock_guard lock(mutex_);
  return failed_writes_;
}

EventLog::ListenerId EventLog::AddListener(std::function<void()> listener) {
  const std::lock_guard lock(listeners_mutex_);
  listeners_[next_listener_] = std::move(listener);
  return next_listener_++;
}

void EventLog::RemoveListener(ListenerId listener) {
  const std::lock_guard lock(listeners_mutex_);
  listeners_.erase(listener);
}

}  // namespace epic::coordinator
