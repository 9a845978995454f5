// Runs a kernel on the card or, emulated, on the host. A kernel is a type with
//   struct Params                       trivially copyable
//   static constexpr int kThreads       of a block
//   static constexpr int kSharedBytes   of a block
//   static constexpr int kBlocksPerSm   that must fit beside one another
//   static void Run(const Params&)      EPIC_DEVICE, the code of one thread
#pragma once

#ifndef __CUDACC__
#include <functional>
#endif

#include "kernels/cuda/device/device.h"

namespace epic::kernels::cuda {

#ifdef __CUDACC__

using Stream = cudaStream_t;

// The name of the kernel in profiles: Entry<GateKernel>.
template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerSm)
    Entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::Run(params);
}

// Aborts where the launch is refused: sizes are checked by tests (budget_test.cc).
void CheckCuda(cudaError_t status, const char* what);

template <typename Kernel>
void Launch(Stream stream, int blocks, const typename Kernel::Params& params) {
  // An empty grid is an error of the driver's.
  if (blocks == 0) return;
  if constexpr (Kernel::kSharedBytes > 48 * 1024) {
    // The attribute belongs to the current card, which may be another at the next call: so it is
    // set every time.
    CheckCuda(cudaFuncSetAttribute(Entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Kernel::kSharedBytes),
              "cudaFuncSetAttribute");
  }
  Entry<Kernel><<<blocks, Kernel::kThreads, Kernel::kSharedBytes, stream>>>(params);
  CheckCuda(cudaGetLastError(), __PRETTY_FUNCTION__);
}

#else

// Takes launches to run them later, in order, each with a seed of its own.
class LaunchQueue {
 public:
  virtual ~LaunchQueue() = default;
  virtual void Push(std::function<void(uint64_t seed)> launch) = 0;
};

// In place of a stream: the seed of the order in which things happen, or a queue.
struct Stream {
  uint64_t seed = 0;
  LaunchQueue* queue = nullptr;
};

template <typename Kernel>
void Launch(Stream stream, int blocks, const typename Kernel::Params& params) {
  if (blocks == 0) return;
  // Parameters are copied, as a launch on a card copies them: the caller's may change at once.
  const auto run = [blocks, params](uint64_t seed) {
    RunEmulated({.blocks = blocks,
                 .threads = Kernel::kThreads,
                 .shared_bytes = Kernel::kSharedBytes,
                 .seed = seed},
                [&params] { Kernel::Run(params); });
  };
  if (stream.queue != nullptr) {
    stream.queue->Push(run);
  } else {
    run(stream.seed);
  }
}

#endif

}  // namespace epic::kernels::cuda
