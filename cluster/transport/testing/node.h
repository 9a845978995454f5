// A rank of a test: a loop and its wires, and what came over them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/epoll_loop.h"
#include "base/sim_loop.h"
#include "cluster/transport/peer_transport.h"

namespace epic::cluster {

// An empty folder below the system's temporary one, gone with its owner.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct NodeOptions {
  WireChoice wires = WireChoice::kAuto;
  std::string run_dir;
  std::string host_name = "here";
  size_t ring_bytes = kRingBytesMin;
  absl::Duration spin = absl::ZeroDuration();
  std::string pair_key = "key";  // in what the others are told
};

class Node {
 public:
  struct Frame {
    FrameHeader header;
    std::vector<std::byte> payload;
  };

  Node(int rank, const NodeOptions& options);

  int rank() const { return rank_; }
  uint64_t generation() const { return generation_; }
  // What the others are told of it.
  RankAddress entry() const;
  void SetPeers(const AddressBook& peers) { transport_->SetPeers(peers); }

  PeerTransport& transport() { return *transport_; }
  EpollLoop& loop() { return loop_; }
  // Ends the rank, as its process's exit would.
  void Stop() { transport_ = nullptr; }

  // Adds the frame's number within its stream, so that order is checked, and a content that follows
  // from seed and number.
  bool SendPattern(int peer, uint64_t number, size_t bytes);

  // By peer.
  std::map<int, int> ups, downs;
  std::map<int, absl::Status> last_down;
  std::map<int, std::vector<Frame>> frames;
  // Called instead of keeping frames.
  std::function<void(int peer, const FrameHeader& header, Bytes payload)> on_frame;

 private:
  const int rank_;
  const NodeOptions options_;
  const uint64_t generation_;
  EpollLoop loop_;
  SeededRandom random_;
  std::unique_ptr<PeerTransport> transport_;
};

// A payload that follows from a number.
std::vector<std::byte> Pattern(uint64_t number, size_t bytes);

// Runs the loops in turn until `done`; false after 60 s.
bool RunUntil(const std::vector<Node*>& nodes, const std::function<bool()>& done);
// A round of each loop, `rounds` times.
void RunRounds(const std::vector<Node*>& nodes, int rounds);

// Open descriptors and resident memory of this process.
int DescriptorCount();
int64_t ResidentBytes();

}  // namespace epic::cluster
