#include "worker/exchange/start_epochs.h"

#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status.h"

#if EPIC_MPI
#include "cluster/transport/mpi/mpi_collective.h"
#endif
#if EPIC_CUDA
#include "cluster/transport/nccl/cuda_nccl.h"
#include "worker/exchange/nccl_epochs.h"
#endif

namespace epic::worker {
namespace {

#if EPIC_MPI
absl::StatusOr<std::unique_ptr<EpochSource>> StartMpiEpoch(Random& random) {
  ASSIGN_OR_RETURN(std::unique_ptr<cluster::Collective> collective, cluster::StartMpi());
  // Rank 0 draws the number; all others bring 0, so the maximum is its number. Bit 62 keeps it away
  // from the numbers that a coordinator gives, which count from 1.
  int64_t epoch = 0;
  if (collective->rank() == 0) epoch = static_cast<int64_t>(random.Next() >> 2) | int64_t{1} << 62;
  const auto told = collective->StartAllReduce(cluster::Reduction::kMax, {&epoch, 1});
  // Nothing else has to turn yet: the rank's loop is not running, and mpirun starts all ranks
  // together.
  while (true) {
    ASSIGN_OR_RETURN(const bool done, collective->Done(told));
    if (done) break;
    std::this_thread::yield();
  }
  return std::make_unique<StaticEpoch>(std::move(collective), static_cast<uint64_t>(epoch));
}
#endif

#if EPIC_CUDA
absl::StatusOr<std::unique_ptr<EpochSource>> StartNcclEpochs(int ranks, int card, Clock& clock,
                                                             Threads& threads) {
  ASSIGN_OR_RETURN(std::unique_ptr<cluster::NcclApi> api, cluster::OpenCudaNccl(card));
  // _Exit, not exit: exit handlers would wait for the card.
  const auto on_stuck = [](const std::string& why) { std::_Exit(EXIT_FAILURE); };
  return std::make_unique<NcclEpochs>(std::move(api), clock, threads, ranks, on_stuck);
}
#endif

}  // namespace

absl::StatusOr<std::unique_ptr<EpochSource>> StartEpochs(const std::string& name, int ranks,
                                                         int card, Clock& clock, Random& random,
                                                         Threads& threads) {
#if EPIC_MPI
  if (name == "mpi") return StartMpiEpoch(random);
#endif
#if EPIC_CUDA
  if (name == "nccl") return StartNcclEpochs(ranks, card, clock, threads);
#endif
  return absl::UnimplementedError(
      absl::StrCat("--exchange ", name, ": this program was built without it"));
}

}  // namespace epic::worker
