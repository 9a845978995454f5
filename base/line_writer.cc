#include "base/line_writer.h"

#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"

namespace epic {

absl::StatusOr<std::unique_ptr<LineWriter>> LineWriter::Open(Storage& storage, Threads& threads,
                                                             const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<AppendFile> file, storage.OpenToAppend(path));
  // An earlier process may have died in the middle of a line.
  bool torn = false;
  if (file->size() > 0) {
    ASSIGN_OR_RETURN(const std::string last, storage.Read(path, file->size() - 1));
    torn = last != "\n";
  }
  std::unique_ptr<LineWriter> writer(new LineWriter(std::move(file), torn));
  writer->thread_ = threads.Start("line-writer", [writer = writer.get()] { writer->Run(); });
  return writer;
}

LineWriter::~LineWriter() {
  {
    const absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  thread_.reset();  // joins it: the queue is empty then
}

void LineWriter::Append(std::string line) {
  CHECK(line.find('\n') == std::string::npos) << line;
  const absl::MutexLock lock(&mutex_);
  // The line is lost and counted. To wait here would stop the loop that decides for the whole
  // world.
  if (queue_.size() >= kQueuedMax) {
    ++lost_;
    return;
  }
  queue_.push_back(std::move(line));
}

void LineWriter::Flush() {
  const absl::MutexLock lock(&mutex_);
  // An empty queue is not enough: the last line may be taken out and not be written yet.
  mutex_.Await(absl::Condition(this, &LineWriter::Idle));
}

int64_t LineWriter::lost() const {
  const absl::MutexLock lock(&mutex_);
  return lost_;
}

void LineWriter::Run() {
  bool said = false;
  for (;;) {
    std::string line;
    {
      const absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &LineWriter::HasWork));
      if (queue_.empty()) return;  // closed
      line = std::move(queue_.front());
      queue_.pop_front();
      writing_ = true;
    }
    // Without the lock: the disk may take its time, and nobody waits for it.
    const bool written = Write(line);
    // Said once: the log may be on the same full disk.
    if (!written && !std::exchange(said, true)) {
      LOG_ERROR("a file takes no more lines: they are lost, and work goes on");
    }
    const absl::MutexLock lock(&mutex_);
    writing_ = false;
    lost_ += written ? 0 : 1;
  }
}

bool LineWriter::Write(const std::string& line) {
  const uint64_t before = file_->size();
  // A torn line is ended first: what comes is a line of its own.
  const bool written = file_->Append((torn_ ? "\n" : "") + line + "\n").ok();
  // After an error a part of the line may be in the file. If nothing is, the line before has not
  // changed.
  if (written || file_->size() > before) torn_ = !written;
  return written;
}

}  // namespace epic
