// Operations of small steps, replayed as CUDA graphs. Such a step launches the same kernels with
// the same parameters as others of its bucket of rows; what differs lies in memory that the kernels
// read. So a sequence of operations that comes again is recorded once and then launched as one.
//
//   graphs.Run([=] { Launch(...); }, "norm", x.rows, x.data);   // held back
//   graphs.Run([=] { Launch(...); }, "gate", gate.id, x.data);
//   graphs.Flush();   // the first time: both run; the second: they are recorded; then: replayed
//
// The first time lets scratch memory grow, which no recording could hold. When it grows, all
// recordings go: they hold its addresses.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/cuda/device_memory.h"

namespace epic::kernels::cuda {

// Of one thread, that of the launches.
class OperationGraphs {
 public:
  // Not `enabled`: every operation runs at once.
  OperationGraphs(DeviceHeap& heap, bool enabled) : heap_(heap), enabled_(enabled) {}

  bool enabled() const { return enabled_; }

  // `operation` launches, and does nothing else that can be seen: it may not wait, upload or copy.
  // `name` (a literal) and `words` say all that its launches are made of: pointers, numbers, enums.
  template <typename... Words>
  void Run(std::function<void()> operation, const char* name, const Words&... words) {
    if (!enabled_) return operation();
    key_.push_back(Word(name));
    (key_.push_back(Word(words)), ...);
    operations_.push_back(std::move(operation));
  }
  // Operations given so far go to the device.
  void Flush();
  // After those given so far; never recorded.
  void RunNow(const std::function<void()>& operation) {
    Flush();
    operation();
  }

  // Sequences so far, for tests.
  int recorded() const { return recorded_; }
  int replayed() const { return replayed_; }

 private:
  using Key = std::vector<uint64_t>;
  struct Hash {
    size_t operator()(const Key& key) const;
  };

  template <typename T>
  static uint64_t Word(const T& value) {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<uint64_t>(value);
    } else if constexpr (std::is_same_v<T, float>) {
      return std::bit_cast<uint32_t>(value);
    } else {
      return static_cast<uint64_t>(value);
    }
  }
  void RunAll() const;

  DeviceHeap& heap_;
  const bool enabled_;
  Key key_;
  std::vector<std::function<void()>> operations_;
  // Null: seen once.
  std::unordered_map<Key, std::unique_ptr<DeviceRuntime::Recording>, Hash> recordings_;
  int64_t scratch_moves_ = 0;
  int recorded_ = 0;
  int replayed_ = 0;
};

}  // namespace epic::kernels::cuda
