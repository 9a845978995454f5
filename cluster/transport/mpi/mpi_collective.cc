#include "cluster/transport/mpi/mpi_collective.h"

#include <mpi.h>

#include <climits>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"

namespace epic::cluster {
namespace {

// One is enough: messages of a pair do not overtake each other.
constexpr int kTag = 0;

std::string ErrorText(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, length);
}

MPI_Op OpOf(Reduction reduction) {
  switch (reduction) {
    case Reduction::kMin:
      return MPI_MIN;
    case Reduction::kMax:
      return MPI_MAX;
    case Reduction::kSum:
      break;
  }
  return MPI_SUM;
}

class MpiCollective : public Collective {
 public:
  MpiCollective() {
    // A communicator of our own: nobody else's messages, and errors come back as codes.
    MPI_Comm_dup(MPI_COMM_WORLD, &communicator_);
    MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
  }

  ~MpiCollective() override {
    // Finalizing waits for the other ranks: an MPI world ends as one.
    MPI_Comm_free(&communicator_);
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  // Pairs of messages, none for an empty part: each pair's arrive in the order of the operations.
  Operation StartAllToAll(std::span<const std::span<const std::byte>> send,
                          std::span<const std::span<std::byte>> receive) override {
    CHECK_EQ(static_cast<int>(send.size()), size_);
    CHECK_EQ(static_cast<int>(receive.size()), size_);
    // Receives are posted before sends, so that large messages find their place.
    // MPI_Alltoallv would want all parts in one buffer, and those of an exchange lie anywhere. A
    // request is a handle, so the vector may move it once the call has returned.
    Open& open = open_[next_];
    for (int peer = 0; peer < size_; ++peer) {
      if (receive[peer].empty()) continue;
      open.expected_bytes.push_back(Count(receive[peer].size()));
      open.sources.push_back(peer);
      Check("MPI_Irecv", MPI_Irecv(receive[peer].data(), open.expected_bytes.back(), MPI_BYTE, peer,
                                   kTag, communicator_, &open.requests.emplace_back()));
    }
    for (int peer = 0; peer < size_; ++peer) {
      if (send[peer].empty()) continue;
      Check("MPI_Isend", MPI_Isend(send[peer].data(), Count(send[peer].size()), MPI_BYTE, peer,
                                   kTag, communicator_, &open.requests.emplace_back()));
    }
    return next_++;
  }

  Operation StartAllReduce(Reduction reduction, std::span<int64_t> values) override {
    Check("MPI_Iallreduce",
          MPI_Iallreduce(MPI_IN_PLACE, values.data(), Count(values.size()), MPI_INT64_T,
                         OpOf(reduction), communicator_, &open_[next_].requests.emplace_back()));
    return next_++;
  }

  absl::StatusOr<bool> Done(Operation operation) override {
    const auto found = open_.find(operation);
    CHECK(found != open_.end()) << "operation " << operation;
    Open& open = found->second;
    std::vector<MPI_Status> statuses(open.requests.size());
    int done = 0;
    // MPI moves data on only while it is called, so whoever waits for an operation asks again and
    // again.
    const int code = MPI_Testall(static_cast<int>(open.requests.size()), open.requests.data(),
                                 &done, statuses.data());
    // The real error stands in one of the statuses.
    if (code == MPI_ERR_IN_STATUS) {
      for (const MPI_Status& status : statuses) {
        if (status.MPI_ERROR != MPI_ERR_PENDING) Check("MPI_Testall", status.MPI_ERROR);
      }
    }
    Check("MPI_Testall", code);
    if (done == 0) return false;
    for (size_t i = 0; i < open.sources.size(); ++i) {
      int count = 0;
      // A message that is too long is an error of MPI already; one that is too short is found here.
      MPI_Get_count(&statuses[i], MPI_BYTE, &count);
      if (count == open.expected_bytes[i]) continue;
      Abort(absl::StrCat("operation ", operation, ": rank ", open.sources[i], " sent ", count,
                         " bytes, ", open.expected_bytes[i], " were expected"));
    }
    open_.erase(found);
    return true;
  }

  void Abort(const std::string& reason) override {
    LOG_ERROR("rank {}: {}; the MPI world ends", rank_, reason);
    // It should not return. Where it does, this rank must not go on in a world that is over.
    MPI_Abort(communicator_, EXIT_FAILURE);
    std::_Exit(EXIT_FAILURE);
  }

 private:
  struct Open {
    std::vector<MPI_Request> requests;  // first what is received, as `sources` says
    std::vector<int> sources;
    std::vector<int> expected_bytes;
  };

  static int Count(size_t count) {
    // MPI counts in int. A tile is far below that.
    CHECK_LE(count, static_cast<size_t>(INT_MAX));
    return static_cast<int>(count);
  }

  void Check(const char* what, int code) {
    if (code != MPI_SUCCESS) Abort(absl::StrCat(what, ": ", ErrorText(code)));
  }

  MPI_Comm communicator_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 0;
  Operation next_ = 0;
  std::map<Operation, Open> open_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Collective>> StartMpi() {
  int provided = 0;
  // Only the loop's thread calls MPI; compute threads exist beside it.
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  if (code != MPI_SUCCESS) {
    return absl::UnavailableError(absl::StrCat("MPI_Init_thread: ", ErrorText(code)));
  }
  if (provided < MPI_THREAD_FUNNELED) {
    return absl::UnavailableError("this MPI allows no threads beside the one that uses it");
  }
  return std::make_unique<MpiCollective>();
}

}  // namespace epic::cluster
