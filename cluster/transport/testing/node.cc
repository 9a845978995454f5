#include "cluster/transport/testing/node.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::cluster {

TestFolder::TestFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "epic-transport-XXXXXX").string();
  CHECK(mkdtemp(name.data()) != nullptr) << std::strerror(errno);
  path_ = name;
}

TestFolder::~TestFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Node::Node(int rank, const NodeOptions& options)
    : rank_(rank),
      options_(options),
      generation_(RealRandom().Next()),
      loop_(RealClock()),
      random_(generation_) {
  PeerTransportOptions wires;
  wires.wires = options.wires;
  wires.host_name = options.host_name;
  wires.run_dir = options.run_dir;
  wires.ring_bytes = options.ring_bytes;
  wires.spin = options.spin;
  wires.tcp_user_timeout = absl::Seconds(30);  // a reader that is not run for long is no loss here
  auto transport = PeerTransport::Create(wires, loop_, RealClock(), random_);
  CHECK_OK(transport.status());
  transport_ = *std::move(transport);
  transport_->SetHandlers({.on_up = [this](int peer) { ++ups[peer]; },
                           .on_frame =
                               [this](int peer, const FrameHeader& header, Bytes payload) {
                                 if (on_frame) return on_frame(peer, header, payload);
                                 frames[peer].push_back({header, {payload.begin(), payload.end()}});
                               },
                           .on_down =
                               [this](int peer, const absl::Status& why) {
                                 ++downs[peer];
                                 last_down[peer] = why;
                               }});
  CHECK(transport_->SetSelf(rank, generation_).ok());
}

RankAddress Node::entry() const {
  return {.rank = rank_,
          .generation = generation_,
          .host = options_.host_name,
          .run_dir = options_.run_dir,
          .address = transport_->address(),
          .pair_key = options_.pair_key};
}

bool Node::SendPattern(int peer, uint64_t number, size_t bytes) {
  const std::vector<std::byte> payload = Pattern(number, bytes);
  // In parts of uneven sizes, some of them empty.
  const size_t first = bytes / 3;
  const Bytes whole(payload);
  const Bytes parts[] = {whole.first(first), {}, whole.subspan(first)};
  FrameHeader header;
  header.kind = FrameKind::kDispatch;
  header.dispatch = number;
  return transport_->Send(peer, header, parts);
}

std::vector<std::byte> Pattern(uint64_t number, size_t bytes) {
  std::vector<std::byte> out(bytes);
  SeededRandom random(number * 0x10001 + bytes);
  size_t at = 0;
  for (; at + 8 <= bytes; at += 8) {
    const uint64_t word = random.Next();
    std::memcpy(out.data() + at, &word, 8);
  }
  for (; at < bytes; ++at) out[at] = static_cast<std::byte>(random.Next());
  return out;
}

bool RunUntil(const std::vector<Node*>& nodes, const std::function<bool()>& done) {
  const absl::Time end = RealClock().Now() + absl::Seconds(60);
  while (!done()) {
    if (RealClock().Now() > end) return false;
    RunRounds(nodes, 1);
  }
  return true;
}

void RunRounds(const std::vector<Node*>& nodes, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    for (Node* node : nodes) node->loop().RunOnce(absl::Milliseconds(1));
  }
}

int DescriptorCount() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

int64_t ResidentBytes() {
  int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace epic::cluster
