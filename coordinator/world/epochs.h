// Epochs: which ranks form a communicator together, and in which places (protocol.md §7). A plain
// object. An epoch is formed when as many ranks have come as each of them wants, in the order of
// their coming, and is never joined later: with one rank it is lost, and the others come again.
//
// A communicator is formed with an id that one of its ranks makes: the one in place 0 is invited
// without, and all are once it has told (TakeId).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

class Epochs {
 public:
  struct Formed {
    uint64_t epoch = 0;
    std::vector<int> ranks;  // by place
  };

  // A new rank wants a place among `size`, if it can be `place` (-1: any), which goes to the first
  // who wants it. The epoch that it completes, if it does.
  std::optional<Formed> Join(int rank, int size, int place);
  // It is lost.
  void Leave(int rank);
  // The ranks to be invited with the id: those of the epoch, if `rank` is asked for its id and has
  // not told it before; else none.
  std::vector<int> TakeId(int rank, const v1::EpochId& id);
  // For a rank of an epoch.
  v1::JoinEpoch Invitation(int rank, const std::string& unique_id) const;

 private:
  struct Seat {
    int size = 0;
    int place = -1;      // wanted; then its place
    uint64_t epoch = 0;  // 0: waits for others
    bool id_told = false;
  };

  uint64_t last_epoch_ = 0;
  std::map<int, Seat> seats_;  // by rank
};

}  // namespace epic::coordinator
