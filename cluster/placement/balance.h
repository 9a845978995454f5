// Balance: which rank is to hold which expert (docs/protocol.md §6), as one pure function of
// weights, slots and what is held. It keeps what is held where it can, gives every expert a home
// first, then replicas to the hottest (greedy EPLB), and moves experts for evenness only when it
// may.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace epic::cluster {

// replicas[layer][expert]: ranks, ascending; dense layers are empty. As ExpertMap::replicas.
using Replicas = std::vector<std::vector<std::vector<int>>>;

struct ExpertHost {
  int rank = 0;
  int64_t slots = 0;     // replicas that it has room for, over all layers
  std::string machine;   // replicas of one expert are kept on several, where there is a choice
  bool leaving = false;  // gives all up that others have room for
};

struct BalanceRequest {
  int layer_count = 0;
  int first_expert_layer = 0;
  int expert_count = 0;           // of each layer from first_expert_layer on
  std::vector<ExpertHost> hosts;  // ascending by rank
  // What is held or being loaded; ranks that are no hosts are passed over. Empty: nothing.
  Replicas current;
  // How much each expert has to do, [layer][expert], in any unit; empty: all alike.
  std::vector<std::vector<double>> weights;
  int replicas_max = 1;     // of an expert, while slots are left; more are given up
  bool homes_only = false;  // no new replicas or moves: only experts without a home are loaded
  bool may_move = false;    // from full ranks to empty ones, for evenness alone
};

// Equal requests give equal results. Within a layer ranks get loads that are as even as slots
// allow; over all layers, counts. No rank gets more than its slots. An expert that a staying rank
// holds is loaded nowhere unless `replicas_max` or `may_move` asks for it.
Replicas Balance(const BalanceRequest& request);

}  // namespace epic::cluster
