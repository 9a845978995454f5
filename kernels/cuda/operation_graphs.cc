#include "kernels/cuda/operation_graphs.h"

#include <utility>

#include "kernels/check.h"

namespace epic::kernels::cuda {
namespace {

// A model of 61 layers has two sequences in each, and some for its experts, in each of 5 buckets.
// More come only from callers who bring new memory again and again, and whose old recordings are
// worth nothing.
constexpr size_t kRecordingsMax = 2048;

}  // namespace

OperationGraphs::OperationGraphs(DeviceHeap& heap, bool enabled) : heap_(heap), enabled_(enabled) {
  // Scratch memory that grows frees what it had: launches held back still want to read it, and
  // recordings that name its address will not be asked for again.
  heap_.BeforeScratchMoves([this] {
    Flush();
    ForgetRecordings();
  });
}

OperationGraphs::~OperationGraphs() { heap_.BeforeScratchMoves({}); }

void OperationGraphs::Begin(bool replayable) {
  holding_ = enabled_ && replayable;
  if (!holding_) Flush();
}

void OperationGraphs::ForgetRecordings() {
  // Their keys stay as seen: those without the scratch memory that moved are recorded again at
  // once.
  for (auto& [key, recording] : recordings_) recording.reset();
}

void OperationGraphs::LaunchHeld() const {
  for (const HeldLaunch& held : launches_) {
    // Asked for each time: while the runtime records, its stream is another.
    held.launch(held.kernel, heap_.runtime().stream(), stored_.data() + held.offset);
  }
}

void OperationGraphs::Flush() {
  if (launches_.empty()) return;
  if (recordings_.size() > kRecordingsMax) recordings_.clear();
  DeviceRuntime& runtime = heap_.runtime();
  const auto [at, is_new] = recordings_.try_emplace(std::move(key_));
  if (is_new) {
    LaunchHeld();
  } else {
    if (at->second == nullptr) {
      runtime.BeginRecording();
      LaunchHeld();
      at->second = runtime.EndRecording();
      KERNEL_CHECK(at->second != nullptr);
      ++recorded_;
    } else {
      ++replayed_;
    }
    at->second->Launch();
  }
  key_.clear();
  launches_.clear();
  stored_.clear();
}

}  // namespace epic::kernels::cuda
