// Round trips and bandwidth between two processes, over shared memory and tcp; JSON. The program,
// started again, is the other process: it answers each frame with as many bytes as the frame asks.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "CLI/CLI.hpp"
#include "base/check.h"
#include "base/log.h"
#include "cluster/transport/testing/node.h"
#include "nlohmann/json.hpp"

namespace epic::cluster {
namespace {

using nlohmann::json;

struct Settings {
  std::string wires = "shm";
  int spin_us = 0;
  size_t ring_bytes = 1 << 20;
};

// A row of V2-Lite in BF16, for each of 6 experts.
constexpr size_t kStepBytes = size_t{6} * 2048 * 2;

NodeOptions OptionsOf(const Settings& settings, const std::string& run_dir) {
  return {.wires = settings.wires == "shm" ? WireChoice::kShm : WireChoice::kTcp,
          .run_dir = run_dir,
          .ring_bytes = settings.ring_bytes,
          .spin = absl::Microseconds(settings.spin_us)};
}

// `term` of a frame is the size of its answer.
int Answer(const Settings& settings, const std::string& run_dir, uint64_t generation,
           const std::string& address) {
  Node node(2, OptionsOf(settings, run_dir));
  RankAddress other{.rank = 1,
                  .generation = generation,
                  .host = "here",
                  .run_dir = run_dir,
                  .address = address,
                  .pair_key = "key"};
  std::cout << node.generation() << " " << node.entry().address << std::endl;
  std::vector<std::byte> rows(size_t{64} << 20), room(rows.size());
  node.on_frame = [&](int peer, const FrameHeader& header, Bytes payload) {
    std::copy(payload.begin(), payload.end(), room.begin());  // as the exchange does
    FrameHeader back;
    back.kind = FrameKind::kCombine;
    const Bytes answer = Bytes(rows).first(header.term);
    node.transport().Send(peer, back, std::span(&answer, 1));
  };
  node.SetPeers({other});
  while (node.downs[1] == 0) node.loop().RunOnce(absl::InfiniteDuration());
  return 0;
}

class Bench {
 public:
  explicit Bench(const Settings& settings) : node_(1, OptionsOf(settings, folder_.path())) {
    int out[2];
    CHECK(pipe2(out, O_CLOEXEC) == 0);
    const std::vector<std::string> words = {"transport_benchmark",
                                            "--wires",
                                            settings.wires,
                                            "--spin-us",
                                            std::to_string(settings.spin_us),
                                            "--ring-bytes",
                                            std::to_string(settings.ring_bytes),
                                            "--run-dir",
                                            folder_.path(),
                                            "--generation",
                                            std::to_string(node_.generation()),
                                            "--address",
                                            node_.entry().address};
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    CHECK(posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, arguments.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    told_ = fdopen(out[0], "r");
    unsigned long long generation = 0;
    char address[100] = "";
    CHECK(std::fscanf(told_, "%llu%*[ ]%99[^\n]", &generation, address) >= 1);
    RankAddress other = node_.entry();
    other.rank = 2;
    other.generation = generation;
    other.address = address;
    node_.on_frame = [this](int, const FrameHeader&, Bytes payload) {
      std::copy(payload.begin(), payload.end(), room_.begin());
      ++answers_;
    };
    node_.SetPeers({other});
    CHECK(RunUntil({&node_}, [&] { return node_.transport().up(2); }));
  }
  ~Bench() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    std::fclose(told_);
  }

  // Microseconds, ascending.
  std::vector<double> RoundTrips(size_t bytes, size_t answer_bytes, int count) {
    std::vector<double> times;
    for (int i = -count / 10; i < count; ++i) {
      const absl::Time start = RealClock().Now();
      Send(bytes, answer_bytes);
      WaitFor(1);
      if (i >= 0) times.push_back(absl::ToDoubleMicroseconds(RealClock().Now() - start));
    }
    std::sort(times.begin(), times.end());
    return times;
  }

  // Bytes per second one way, two frames under way.
  double Bandwidth(size_t bytes, int count) {
    RoundTrips(bytes, 0, 3);
    const absl::Time start = RealClock().Now();
    Send(bytes, 0);
    for (int i = 1; i < count; ++i) {
      Send(bytes, 0);
      WaitFor(1);
    }
    WaitFor(1);
    return static_cast<double>(bytes) * count / absl::ToDoubleSeconds(RealClock().Now() - start);
  }

  int64_t rescues() { return node_.transport().doorbell_rescues(); }

 private:
  void Send(size_t bytes, size_t answer_bytes) {
    FrameHeader header;
    header.kind = FrameKind::kDispatch;
    header.term = answer_bytes;
    const Bytes rows = Bytes(rows_).first(bytes);
    CHECK(node_.transport().Send(2, header, std::span(&rows, 1)));
  }
  void WaitFor(int64_t answers) {
    expected_ += answers;
    while (answers_ < expected_) node_.loop().RunOnce(absl::InfiniteDuration());
  }

  TestFolder folder_;
  Node node_;
  pid_t pid_ = 0;
  FILE* told_ = nullptr;
  std::vector<std::byte> rows_ = std::vector<std::byte>(size_t{64} << 20);
  std::vector<std::byte> room_ = std::vector<std::byte>(size_t{64} << 20);
  int64_t answers_ = 0, expected_ = 0;
};

json Measure(const Settings& settings, int rounds) {
  Bench bench(settings);
  json out{{"wires", settings.wires},
           {"spin_us", settings.spin_us},
           {"ring_bytes", settings.ring_bytes}};
  const auto row = [&](const char* name, size_t bytes, size_t answer_bytes, int count) {
    const std::vector<double> times = bench.RoundTrips(bytes, answer_bytes, count);
    out["round_trips"].push_back({{"name", name},
                                  {"bytes", bytes},
                                  {"answer_bytes", answer_bytes},
                                  {"median_us", times[times.size() / 2]},
                                  {"p99_us", times[times.size() * 99 / 100]}});
  };
  row("empty", 0, 0, rounds);
  row("V2-Lite batch 1", kStepBytes, kStepBytes, rounds);
  row("256 KiB", 256 << 10, 256 << 10, rounds / 10 + 10);
  row("1 MiB", 1 << 20, 1 << 20, rounds / 20 + 10);
  for (size_t bytes : {size_t{64} << 10, size_t{1} << 20, size_t{16} << 20}) {
    const int count = static_cast<int>(std::clamp<size_t>((size_t{1} << 30) / bytes, 16, 4000));
    out["one_way"].push_back(
        {{"bytes", bytes}, {"bytes_per_second", bench.Bandwidth(bytes, count)}});
  }
  out["doorbell_rescues"] = bench.rescues();
  return out;
}

int Main(int argument_count, char** arguments) {
  InitLog("transport_benchmark", "warning");
  Settings settings;
  std::string run_dir, address;
  uint64_t generation = 0;
  int rounds = 20000;
  bool one = false;
  CLI::App app("Round trips and bandwidth between two processes");
  app.add_option("--wires", settings.wires, "shm or tcp; neither: both, shm also spinning")
      ->each([&](const std::string&) { one = true; });
  app.add_option("--spin-us", settings.spin_us, "look for so long before a sleep, at most 20");
  app.add_option("--ring-bytes", settings.ring_bytes, "of a ring");
  app.add_option("--rounds", rounds, "round trips of a small size");
  app.add_option("--run-dir", run_dir)->group("");
  app.add_option("--address", address)->group("");
  app.add_option("--generation", generation)->group("");
  CLI11_PARSE(app, argument_count, arguments);
  if (generation != 0) return Answer(settings, run_dir, generation, address);
  json out = json::array();
  if (one) {
    out.push_back(Measure(settings, rounds));
  } else {
    for (auto [wires, spin_us] : {std::pair{"shm", 0}, {"shm", 20}, {"tcp", 0}}) {
      settings.wires = wires;
      settings.spin_us = spin_us;
      out.push_back(Measure(settings, rounds));
    }
  }
  std::cout << out.dump(2) << std::endl;
  return 0;
}

}  // namespace
}  // namespace epic::cluster

int main(int argument_count, char** arguments) {
  return epic::cluster::Main(argument_count, arguments);
}
