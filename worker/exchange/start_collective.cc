#include "worker/exchange/start_collective.h"

#include "absl/strings/str_cat.h"

#if EPIC_MPI
#include "cluster/transport/mpi/mpi_collective.h"
#endif

namespace epic::worker {

absl::StatusOr<std::unique_ptr<cluster::Collective>> StartCollective(const std::string& name) {
#if EPIC_MPI
  if (name == "mpi") return cluster::StartMpi();
#endif
  return absl::UnimplementedError(
      absl::StrCat("--exchange ", name, ": this program was built without it"));
}

}  // namespace epic::worker
