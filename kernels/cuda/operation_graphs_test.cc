// What a recording depends on: the kernels of its launches and every field of their arguments.
#include "kernels/cuda/operation_graphs.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "kernels/cuda/block_gemm.h"
#include "kernels/cuda/gate.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/rows.h"

namespace epic::kernels::cuda {
namespace {

// Padding after `small`, in `nested` and at the end.
struct Nested {
  uint8_t code = 0;
  int32_t value = 0;
};
struct SetArguments {
  uint8_t small = 0;
  float* to = nullptr;
  float value = 0;
  Nested nested;
  bool last = false;
};

// *to ← value + nested.value
void Set(Stream stream, const SetArguments& a) {
  stream.queue->Push([a](uint64_t) { *a.to = a.value + static_cast<float>(a.nested.value); });
}
void SetNegative(Stream stream, const SetArguments& a) {
  stream.queue->Push([a](uint64_t) { *a.to = -a.value; });
}

template <typename T>
std::string BytesOf(const T& value) {
  std::string bytes;
  AppendFields(value, bytes);
  return bytes;
}

// `value` in memory that held `fill`: its padding may keep it.
SetArguments* In(void* memory, int fill, const SetArguments& value) {
  std::memset(memory, fill, sizeof(SetArguments));
  auto* at = new (memory) SetArguments;
  at->small = value.small;
  at->to = value.to;
  at->value = value.value;
  at->nested.code = value.nested.code;
  at->nested.value = value.nested.value;
  at->last = value.last;
  return at;
}

TEST(ArgumentBytes, EveryFieldCountsAndNoPadding) {
  float target = 0;
  const SetArguments base = {1, &target, 2, {3, 4}, true};
  alignas(SetArguments) std::byte a[sizeof(SetArguments)], b[sizeof(SetArguments)];
  EXPECT_EQ(BytesOf(*In(a, 0, base)), BytesOf(*In(b, 0xff, base)));
  EXPECT_EQ(BytesOf(base).size(), 1u + 8 + 4 + 1 + 4 + 1);
  for (const SetArguments& other :
       {SetArguments{0, &target, 2, {3, 4}, true}, SetArguments{1, nullptr, 2, {3, 4}, true},
        SetArguments{1, &target, 2.5f, {3, 4}, true}, SetArguments{1, &target, 2, {0, 4}, true},
        SetArguments{1, &target, 2, {3, 5}, true}, SetArguments{1, &target, 2, {3, 4}, false}}) {
    EXPECT_NE(BytesOf(base), BytesOf(other));
  }
}

TEST(ArgumentBytes, CountTheFieldsOfTheKernels) {
  EXPECT_EQ(argument_bytes::CountFields<NormArguments>(), 8);
  EXPECT_EQ(argument_bytes::CountFields<RecordArguments>(), 9);
  EXPECT_EQ(argument_bytes::CountFields<GateArguments>(), 11);
  EXPECT_EQ(argument_bytes::CountFields<MlaArguments>(), 20);
  EXPECT_EQ(argument_bytes::CountFields<BlockGemmArguments>(), 23);
}

// A launch that brings along what its key lacks cannot be written.
template <typename Operation, typename Arguments>
concept CanRun = requires(OperationGraphs& graphs, Operation operation, Arguments arguments) {
  graphs.RunOrRecord(operation, arguments);
};
TEST(OperationGraphs, TakePlainFunctionsOfTheirArgumentsAlone) {
  static_assert(CanRun<decltype(&Set), SetArguments>);
  float outside = 1;
  const auto captures = [&outside](Stream, const SetArguments& a) { *a.to = outside; };
  static_assert(!CanRun<decltype(captures), SetArguments>);
  static_assert(!CanRun<decltype(&Set), NormArguments>);
  captures({}, {.to = &outside});
}

class Graphs : public testing::Test {
 protected:
  // The value that a launch leaves.
  float Run(void (*kernel)(Stream, const SetArguments&), SetArguments arguments) {
    arguments.to = reinterpret_cast<float*>(memory_->data());
    graphs_.Begin(true);
    graphs_.RunOrRecord(kernel, arguments);
    graphs_.Flush();
    runtime_->Wait();
    return *arguments.to;
  }

  std::string error_;
  const std::unique_ptr<DeviceRuntime> runtime_ = DeviceRuntime::Open(0, error_);
  DeviceHeap heap_{*runtime_};
  const std::unique_ptr<DeviceMemory> memory_ = heap_.Allocate(64, MemoryUse::kHost);
  OperationGraphs graphs_{heap_, true};
};

TEST_F(Graphs, AReplayServesItsOwnArgumentsAlone) {
  for (int round = 0; round < 4; ++round) {
    for (int value = 0; value < 3; ++value) {
      EXPECT_EQ(Run(Set, {.value = 1.0f * value}), value);
      EXPECT_EQ(Run(Set, {.value = 1.0f * value, .nested = {.value = 10}}), value + 10);
      EXPECT_EQ(Run(SetNegative, {.value = 1.0f * value}), -value);
    }
  }
  EXPECT_EQ(graphs_.recorded(), 9);
  EXPECT_EQ(graphs_.replayed(), 18);
}

// Two launches in one sequence, the first of which reads what growing frees.
TEST_F(Graphs, ScratchThatGrowsWaitsForLaunchesHeldBack) {
  Scratch scratch(heap_);
  float result = 0;
  for (int round = 0; round < 3; ++round) {
    graphs_.Begin(true);
    auto* small = scratch.Get<float>(1);
    graphs_.RunOrRecord(Set, {.to = small, .value = 5});
    EXPECT_TRUE(graphs_.holding());
    auto* large = scratch.Get<float>(round == 1 ? 1 << 20 : 1);
    graphs_.RunOrRecord(Set, {.to = large, .value = 7});
    graphs_.Flush();
    runtime_->Copy(&result, large, sizeof(float));
    runtime_->Wait();
    EXPECT_EQ(result, 7);
  }
}

TEST_F(Graphs, NotReplayableLaunchesFollowThoseHeldBack) {
  auto* to = reinterpret_cast<float*>(memory_->data());
  graphs_.Begin(true);
  graphs_.RunOrRecord(Set, {.to = to, .value = 1});
  graphs_.Begin(false);
  graphs_.RunOrRecord(Set, {.to = to, .value = 2});
  runtime_->Wait();
  EXPECT_EQ(*to, 2);
  EXPECT_EQ(graphs_.recorded(), 0);
}

}  // namespace
}  // namespace epic::kernels::cuda
