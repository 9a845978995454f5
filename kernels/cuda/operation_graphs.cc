#include "kernels/cuda/operation_graphs.h"

namespace epic::kernels::cuda {
namespace {

// Of a model of 61 layers, two in each and some for its experts, in every bucket. More are of
// callers who come with ever new memory.
constexpr size_t kRecordingsMax = 2048;

}  // namespace

size_t OperationGraphs::Hash::operator()(const Key& key) const {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const uint64_t word : key) hash = std::rotl((hash ^ word) * 0x9e3779b97f4a7c15u, 29);
  return hash;
}

void OperationGraphs::RunAll() const {
  for (const auto& operation : operations_) operation();
}

void OperationGraphs::Flush() {
  if (operations_.empty()) return;
  if (recordings_.size() > kRecordingsMax) recordings_.clear();
  if (scratch_moves_ != heap_.scratch_moves()) {
    for (auto& [key, recording] : recordings_) recording.reset();
    scratch_moves_ = heap_.scratch_moves();
  }
  DeviceRuntime& runtime = heap_.runtime();
  const auto [at, is_new] = recordings_.try_emplace(std::move(key_));
  if (is_new) {
    RunAll();
  } else {
    if (at->second == nullptr) {
      runtime.BeginRecording();
      RunAll();
      at->second = runtime.EndRecording();
      ++recorded_;
    } else {
      ++replayed_;
    }
    at->second->Launch();
  }
  key_.clear();
  operations_.clear();
}

}  // namespace epic::kernels::cuda
