// The address book: which ranks there are and how each is reached. The transport reads nothing
// else of the world; who exchanges what with whom is decided by the parts that hold a map. Values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace epic::cluster {

// One life of one rank, and how to reach it. The coordinator gives rank numbers and never uses one
// again within a term.
struct RankAddress {
  int rank = 0;
  uint64_t generation = 0;
  std::string host;     // equal strings: the same machine
  std::string run_dir;  // the folder of its unix socket for shared memory; empty: none
  std::string address;  // host:port of its tcp listener; empty: none
  // The key of the hello between this rank and the rank that is told: 32 bytes, or empty without a
  // join token.
  std::string pair_key;
};

// Each rank stands in it once, in any order.
using AddressBook = std::vector<RankAddress>;

}  // namespace epic::cluster
