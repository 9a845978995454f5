#include "cluster/transport/nccl/cuda_nccl.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <nccl.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace epic::cluster {
namespace {

// The two enumerations are cast into each other, so their numbers must be the same.
static_assert(static_cast<int>(NcclResult::kUnhandledCudaError) == ncclUnhandledCudaError);
static_assert(static_cast<int>(NcclResult::kSystemError) == ncclSystemError);
static_assert(static_cast<int>(NcclResult::kInternalError) == ncclInternalError);
static_assert(static_cast<int>(NcclResult::kInvalidArgument) == ncclInvalidArgument);
static_assert(static_cast<int>(NcclResult::kInvalidUsage) == ncclInvalidUsage);
static_assert(static_cast<int>(NcclResult::kRemoteError) == ncclRemoteError);
static_assert(static_cast<int>(NcclResult::kInProgress) == ncclInProgress);
static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));

// libnccl is no part of a machine without cards, so it is opened when it is wanted.
struct Library {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init_rank = nullptr;
  decltype(&ncclCommGetAsyncError) async_error = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclCommFinalize) finalize = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  decltype(&ncclGetLastError) last_error = nullptr;
};

template <class Function>
absl::Status Find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function != nullptr) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("libnccl.so.2 has no ", name));
}

absl::StatusOr<Library> OpenLibrary() {
  // The machine's library comes first, and then the one that this program was built with. The
  // handle is never closed: NCCL may have threads that run its code.
  void* handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  const std::string why = handle == nullptr ? dlerror() : "";
  if (handle == nullptr) handle = dlopen(EPIC_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return absl::UnavailableError(why);
  Library library;
  RETURN_IF_ERROR(Find(handle, "ncclGetVersion", library.get_version));
  RETURN_IF_ERROR(Find(handle, "ncclGetUniqueId", library.get_unique_id));
  RETURN_IF_ERROR(Find(handle, "ncclCommInitRankConfig", library.init_rank));
  RETURN_IF_ERROR(Find(handle, "ncclCommGetAsyncError", library.async_error));
  RETURN_IF_ERROR(Find(handle, "ncclGroupStart", library.group_start));
  RETURN_IF_ERROR(Find(handle, "ncclGroupEnd", library.group_end));
  RETURN_IF_ERROR(Find(handle, "ncclSend", library.send));
  RETURN_IF_ERROR(Find(handle, "ncclRecv", library.receive));
  RETURN_IF_ERROR(Find(handle, "ncclAllReduce", library.all_reduce));
  RETURN_IF_ERROR(Find(handle, "ncclCommFinalize", library.finalize));
  RETURN_IF_ERROR(Find(handle, "ncclCommDestroy", library.destroy));
  RETURN_IF_ERROR(Find(handle, "ncclCommAbort", library.abort));
  RETURN_IF_ERROR(Find(handle, "ncclGetErrorString", library.error_string));
  RETURN_IF_ERROR(Find(handle, "ncclGetLastError", library.last_error));
  int version = 0;
  library.get_version(&version);
  // An older library may not know all fields of the configuration that this program fills in.
  if (version < NCCL_VERSION_CODE) {
    return absl::UnavailableError(absl::StrCat("libnccl.so.2 is version ", version, ", at least ",
                                               NCCL_VERSION_CODE, " is needed"));
  }
  return library;
}

ncclRedOp_t OpOf(Reduction reduction) {
  switch (reduction) {
    case Reduction::kMin:
      return ncclMin;
    case Reduction::kMax:
      return ncclMax;
    case Reduction::kSum:
      break;
  }
  return ncclSum;
}

ncclComm_t CommOf(NcclComm comm) { return static_cast<ncclComm_t>(comm); }
cudaEvent_t EventOf(NcclEvent event) { return static_cast<cudaEvent_t>(event); }
NcclResult ResultOf(ncclResult_t result) { return static_cast<NcclResult>(result); }

class CudaNccl : public NcclApi {
 public:
  CudaNccl(const Library& library, int card, cudaStream_t stream)
      : nccl_(library), card_(card), stream_(stream) {}
  ~CudaNccl() override { cudaStreamDestroy(stream_); }

  NcclResult GetUniqueId(NcclUniqueId& id) override {
    return ResultOf(nccl_.get_unique_id(reinterpret_cast<ncclUniqueId*>(id.data())));
  }

  NcclResult InitRank(NcclComm& comm, int size, const NcclUniqueId& id, int rank) override {
    if (const NcclResult entered = Enter(); entered != NcclResult::kSuccess) return entered;
    ncclUniqueId unique;
    std::ranges::copy(id, unique.internal);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    // Else calls would hold the rank's loop, the first one until all ranks have come.
    config.blocking = 0;
    ncclComm_t made = nullptr;
    const ncclResult_t result = nccl_.init_rank(&made, size, unique, rank, &config);
    comm = made;
    // Formed at once or in a while: AsyncError tells.
    return result == ncclSuccess ? NcclResult::kInProgress : ResultOf(result);
  }

  NcclResult AsyncError(NcclComm comm) override {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = nccl_.async_error(CommOf(comm), &state);
    return ResultOf(result == ncclSuccess ? state : result);
  }

  NcclResult GroupStart() override { return ResultOf(nccl_.group_start()); }
  NcclResult GroupEnd() override { return ResultOf(nccl_.group_end()); }

  NcclResult Send(NcclComm comm, const std::byte* from, size_t bytes, int peer) override {
    return ResultOf(nccl_.send(from, bytes, ncclInt8, peer, CommOf(comm), stream_));
  }

  NcclResult Receive(NcclComm comm, std::byte* into, size_t bytes, int peer) override {
    return ResultOf(nccl_.receive(into, bytes, ncclInt8, peer, CommOf(comm), stream_));
  }

  NcclResult AllReduce(NcclComm comm, Reduction reduction, int64_t* values, size_t count) override {
    return ResultOf(
        nccl_.all_reduce(values, values, count, ncclInt64, OpOf(reduction), CommOf(comm), stream_));
  }

  NcclResult Finalize(NcclComm comm) override { return ResultOf(nccl_.finalize(CommOf(comm))); }
  NcclResult Destroy(NcclComm comm) override { return ResultOf(nccl_.destroy(CommOf(comm))); }

  NcclResult Abort(NcclComm comm) override {
    const ncclResult_t result = nccl_.abort(CommOf(comm));
    // Its kernels have been told; they are gone when the stream is empty.
    const NcclResult drained = Cuda(cudaStreamSynchronize(stream_));
    return result == ncclSuccess || result == ncclInProgress ? drained : ResultOf(result);
  }

  NcclResult Mark(NcclEvent& event) override {
    if (const NcclResult entered = Enter(); entered != NcclResult::kSuccess) return entered;
    cudaEvent_t made = nullptr;
    // The mark only tells that the stream has come here, so it needs no time.
    if (const NcclResult result = Cuda(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
        result != NcclResult::kSuccess) {
      return result;
    }
    event = made;
    return Cuda(cudaEventRecord(made, stream_));
  }

  NcclResult Reached(NcclEvent event) override {
    const cudaError_t error = cudaEventQuery(EventOf(event));
    return error == cudaErrorNotReady ? NcclResult::kInProgress : Cuda(error);
  }

  void FreeMark(NcclEvent event) override { cudaEventDestroy(EventOf(event)); }

  bool Reaches(const void* memory) override {
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
      // CUDA keeps the error and would give it to the next call that asks.
      cudaGetLastError();
      return false;
    }
    // Memory that was pinned for the card has the same address on both sides. Only then can a
    // buffer be used where it lies.
    return attributes.devicePointer == memory;
  }

  std::byte* AllocatePinned(size_t bytes) override {
    if (Enter() != NcclResult::kSuccess) return nullptr;
    void* memory = nullptr;
    const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
    return Cuda(error) == NcclResult::kSuccess ? static_cast<std::byte*>(memory) : nullptr;
  }

  void FreePinned(std::byte* memory) override { cudaFreeHost(memory); }

  std::string ErrorText(NcclResult result) override {
    const std::string text = nccl_.error_string(static_cast<ncclResult_t>(result));
    if (result == NcclResult::kUnhandledCudaError) {
      return absl::StrCat(text, " (", cudaGetErrorString(cudaPeekAtLastError()), ")");
    }
    // NCCL keeps the last error for the process and does not look at the communicator.
    const char* const more = nccl_.last_error(nullptr);
    return more == nullptr || *more == '\0' ? text : absl::StrCat(text, " (", more, ")");
  }

 private:
  static NcclResult Cuda(cudaError_t error) {
    return error == cudaSuccess ? NcclResult::kSuccess : NcclResult::kUnhandledCudaError;
  }
  // CUDA's current card is each thread's own.
  NcclResult Enter() const { return Cuda(cudaSetDevice(card_)); }

  const Library nccl_;
  const int card_;
  const cudaStream_t stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclApi>> OpenCudaNccl(int card) {
  int cards = 0;
  const cudaError_t counted = cudaGetDeviceCount(&cards);
  if (counted != cudaSuccess || cards == 0) {
    return absl::UnavailableError(absl::StrCat(
        "there is no card: ", counted == cudaSuccess ? "none" : cudaGetErrorString(counted)));
  }
  if (card >= cards) {
    return absl::UnavailableError(absl::StrCat("there is no card ", card, ", there are ", cards));
  }
  ASSIGN_OR_RETURN(const Library library, OpenLibrary());
  cudaStream_t stream = nullptr;
  cudaError_t made = cudaSetDevice(card);
  // A stream that never waits for the default stream, where others may compute.
  if (made == cudaSuccess) made = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (made != cudaSuccess) {
    return absl::UnavailableError(absl::StrCat("cudaStreamCreate: ", cudaGetErrorString(made)));
  }
  return std::make_unique<CudaNccl>(library, card, stream);
}

}  // namespace epic::cluster
