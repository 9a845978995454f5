#include <cuda_runtime.h>

#include <cstring>
#include <functional>
#include <utility>

#include "kernels/cuda/device/runtime.h"
#include "kernels/mutex.h"

namespace epic::kernels::cuda {
namespace {

class GraphRecording : public DeviceRuntime::Recording {
 public:
  // `enter`: makes the card the thread's current one.
  GraphRecording(std::function<void()> enter, cudaGraph_t graph, cudaStream_t stream)
      : enter_(std::move(enter)), stream_(stream) {
    CheckCuda(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
    CheckCuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  ~GraphRecording() override {
    enter_();
    cudaGraphExecDestroy(executable_);
  }
  void Launch() override {
    enter_();
    CheckCuda(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch");
  }

 private:
  const std::function<void()> enter_;
  const cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

class CardRuntime : public DeviceRuntime {
 public:
  CardRuntime(int ordinal, const cudaDeviceProp& properties)
      : ordinal_(ordinal), properties_(properties) {
    Enter();
    for (cudaStream_t* stream : {&stream_, &recorded_}) {
      // The streams are non-blocking: work that a library puts on the default stream must not order
      // itself among theirs.
      CheckCuda(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate");
    }
    staging_ = Allocate(kStagingBytes, MemoryUse::kHost);
  }
  ~CardRuntime() override {
    Enter();
    cudaFreeHost(staging_);
    cudaStreamDestroy(stream_);
    cudaStreamDestroy(recorded_);
  }

  const char* family() const override { return "sm90"; }
  std::string name() const override { return properties_.name; }
  int sm_count() const override { return properties_.multiProcessorCount; }
  int64_t free_bytes() const override {
    Enter();
    size_t free = 0, total = 0;
    CheckCuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return static_cast<int64_t>(free);
  }
  // Deep enough to go round every ring of stages.
  ProblemSize tile_test() const override { return {.rows = 300, .n = 328, .k = 2064}; }

  Stream stream() override {
    Enter();
    return recording_ ? recorded_ : stream_;
  }

  // On a stream of its own, so that it takes nothing of what other threads copy meanwhile.
  void BeginRecording() override {
    Enter();
    // The mode is thread-local: calls of threads that load weights meanwhile do not break the
    // recording.
    CheckCuda(cudaStreamBeginCapture(recorded_, cudaStreamCaptureModeThreadLocal),
              "cudaStreamBeginCapture");
    recording_ = true;
  }
  std::unique_ptr<Recording> EndRecording() override {
    Enter();
    recording_ = false;
    cudaGraph_t graph = nullptr;
    CheckCuda(cudaStreamEndCapture(recorded_, &graph), "cudaStreamEndCapture");
    return std::make_unique<GraphRecording>([this] { Enter(); }, graph, stream_);
  }

  std::byte* Allocate(int64_t bytes, MemoryUse use) override {
    Enter();
    void* data = nullptr;
    switch (use) {
      case MemoryUse::kOperations:
        CheckCuda(cudaMalloc(&data, bytes), "cudaMalloc");
        break;
      case MemoryUse::kTraffic: {
        CheckCuda(cudaMallocManaged(&data, bytes), "cudaMallocManaged");
        const cudaMemLocation here = {cudaMemLocationTypeDevice, ordinal_};
        CheckCuda(cudaMemAdvise(data, bytes, cudaMemAdviseSetPreferredLocation, here),
                  "cudaMemAdvise");
        break;
      }
      case MemoryUse::kHost:
        CheckCuda(cudaHostAlloc(&data, bytes, cudaHostAllocPortable), "cudaHostAlloc");
        std::memset(data, 0, bytes);
        return static_cast<std::byte*>(data);
    }
    CheckCuda(cudaMemsetAsync(data, 0, bytes, stream_), "cudaMemsetAsync");
    // The host may write to managed memory next.
    if (use == MemoryUse::kTraffic) Wait();
    return static_cast<std::byte*>(data);
  }

  void Free(std::byte* data, int64_t bytes, MemoryUse use) override {
    Wait();
    CheckCuda(use == MemoryUse::kHost ? cudaFreeHost(data) : cudaFree(data), "cudaFree");
  }

  // What a step brings goes by pinned memory, so that the call neither waits for the card nor
  // relies on when the driver reads other memory. More than it has room for until the next Wait is
  // of loading, and waits.
  void Upload(void* to, const void* from, int64_t bytes) override {
    Enter();
    const auto copy = [&](const void* source) {
      CheckCuda(cudaMemcpyAsync(to, source, bytes, cudaMemcpyHostToDevice, stream_),
                "cudaMemcpyAsync to the card");
    };
    {
      const MutexLock lock(staging_mutex_);
      if (bytes <= kStagingBytes - staged_bytes_) {
        std::memcpy(staging_ + staged_bytes_, from, bytes);
        copy(staging_ + staged_bytes_);
        staged_bytes_ += (bytes + 255) / 256 * 256;
        ++staged_;
        return;
      }
    }
    copy(from);
    Wait();
  }
  void Copy(void* to, const void* from, int64_t bytes) override {
    Enter();
    CheckCuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
  }
  void Zero(void* at, int64_t bytes) override {
    Enter();
    CheckCuda(cudaMemsetAsync(at, 0, bytes, stream_), "cudaMemsetAsync");
  }
  void Wait() override {
    Enter();
    // The count is read before the wait: what other threads stage during it may not have been
    // copied yet.
    const int64_t before = Staged();
    CheckCuda(cudaStreamSynchronize(stream_), "the card");
    const MutexLock lock(staging_mutex_);
    if (staged_ == before) staged_bytes_ = 0;  // all of it has been copied
  }

 private:
  // A step's arrays and the tables of its experts, several times over. Chosen, not measured.
  static constexpr int64_t kStagingBytes = int64_t{4} << 20;

  int64_t Staged() {
    const MutexLock lock(staging_mutex_);
    return staged_;
  }
  // CUDA's current card is each thread's own.
  void Enter() const { CheckCuda(cudaSetDevice(ordinal_), "cudaSetDevice"); }

  const int ordinal_;
  const cudaDeviceProp properties_;
  cudaStream_t stream_ = nullptr;
  cudaStream_t recorded_ = nullptr;
  bool recording_ = false;  // of the launching thread
  std::byte* staging_ = nullptr;
  Mutex staging_mutex_;
  // Since the staging memory was last known to be read.
  int64_t staged_bytes_ KERNEL_GUARDED_BY(staging_mutex_) = 0;
  int64_t staged_ KERNEL_GUARDED_BY(staging_mutex_) = 0;  // uploads by it so far
};

}  // namespace

std::unique_ptr<DeviceRuntime> DeviceRuntime::Open(int ordinal, std::string& error) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    error = std::string("there is no CUDA device") +
            (status != cudaSuccess ? std::string(": ") + cudaGetErrorString(status) : "");
    return nullptr;
  }
  if (ordinal < 0 || ordinal >= count) {
    error = "there is no card " + std::to_string(ordinal) + ", there are " + std::to_string(count);
    return nullptr;
  }
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  // sm_90a code runs on 9.0 alone: WGMMA and setmaxnreg are not forward compatible.
  if (properties.major != 9 || properties.minor != 0) {
    error = std::string(properties.name) + " has compute capability " +
            std::to_string(properties.major) + "." + std::to_string(properties.minor) +
            "; the kernels are made for 9.0 (H100, H200)";
    return nullptr;
  }
  // An exchange reads kTraffic on the host while the card computes.
  if (properties.concurrentManagedAccess == 0) {
    error = std::string(properties.name) +
            ": this system lets no host code read managed memory "
            "while the card computes";
    return nullptr;
  }
  return std::make_unique<CardRuntime>(ordinal, properties);
}

}  // namespace epic::kernels::cuda
