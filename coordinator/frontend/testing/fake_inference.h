// An Inference whose tokens come when the test says so.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/frontend/context.h"
#include "coordinator/frontend/metrics.h"
#include "coordinator/inference.h"
#include "coordinator/metrics/metrics_page.h"

namespace epic::coordinator {

// Thread-safe.
class FakeInference : public Inference {
 public:
  absl::StatusOr<std::shared_ptr<RequestStream>> Submit(Request request) override;
  absl::Status Cancel(const std::string& request_id) override;
  ModelInfo model() const override;
  ClusterStatus status() const override;

  static constexpr int kCachedTokens = 7;  // of each prompt

  // Answers every further request at once with these tokens and this end.
  void AnswerWith(std::vector<int32_t> tokens, FinishReason finish = v1::FINISH_REASON_STOP);
  void RefuseWith(absl::Status status);
  void SetReady(bool ready, std::string reason);

  // Of the `request`-th accepted request.
  void Append(int request, int choice, std::vector<int32_t> tokens);
  void Finish(int request, int choice, FinishReason finish, absl::Status error = {});
  Request request(int request) const;
  int request_count() const;
  int live_stream_count() const;  // not destroyed
  int64_t tokens_read() const;    // that streams have copied for their readers

 private:
  class Stream;
  struct Journal {
    std::vector<JournalToken> tokens;
    FinishReason finish = v1::FINISH_REASON_NONE;
    absl::Status error;
  };
  struct Entry {
    Request request;
    std::vector<Journal> journals;  // of each choice
    std::function<void()> listener;
    bool alive = true;
  };
  void Notify(int request);

  mutable absl::Mutex mutex_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> answer_ ABSL_GUARDED_BY(mutex_);
  FinishReason answer_finish_ ABSL_GUARDED_BY(mutex_) = v1::FINISH_REASON_NONE;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  int64_t tokens_read_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ready_ ABSL_GUARDED_BY(mutex_) = true;
  std::string reason_ ABSL_GUARDED_BY(mutex_);
};

// A context around a FakeInference and the tokenizer of models/tiny-r1.
class FakeWorld {
 public:
  FakeWorld();
  std::vector<int32_t> Encode(const std::string& text) const;  // special tokens are parsed

  FakeInference inference;
  MetricsPage metrics_page{inference};
  FrontendMetrics metrics{metrics_page};
  FrontendContext context;
};

}  // namespace epic::coordinator
