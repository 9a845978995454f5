#include "kernels/cuda/bench/measure.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kRounds = 7;
constexpr double kRoundUs = 4000;
constexpr int kLaunchesMax = 2000;

struct FillKernel {
  struct Params {
    uint32_t* words;
    int64_t count;
    bool constant;
    uint32_t value;
  };
  static constexpr int kThreads = 256;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 1;
  EPIC_DEVICE static void Run(const Params& p) {
    const int64_t step = int64_t{BlockCount()} * kThreads;
    for (int64_t i = int64_t{BlockIndex()} * kThreads + ThreadIndex(); i < p.count; i += step) {
      auto hash = static_cast<uint32_t>(i) * 2654435761u;
      hash ^= hash >> 15;
      // As E4M3, BF16 or FP32: a sign, and a magnitude below 2.
      p.words[i] = p.constant ? p.value : hash & 0xbfbfbfbfu;
    }
  }
};

void Fill(void* data, int64_t bytes, bool constant, uint32_t value) {
  Launch<FillKernel>(nullptr, 1024, {static_cast<uint32_t*>(data), bytes / 4, constant, value});
  CheckCuda(cudaDeviceSynchronize(), "fill");
}

class Events {
 public:
  Events() {
    CheckCuda(cudaEventCreate(&begin_), "cudaEventCreate");
    CheckCuda(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~Events() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  double Microseconds(const std::function<void(int)>& run, int first, int launches) {
    CheckCuda(cudaEventRecord(begin_), "cudaEventRecord");
    for (int i = 0; i < launches; ++i) run(first + i);
    CheckCuda(cudaEventRecord(end_), "cudaEventRecord");
    CheckCuda(cudaEventSynchronize(end_), "the kernel");
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return ms * 1000.0;
  }

 private:
  cudaEvent_t begin_, end_;
};

}  // namespace

BenchMemory::BenchMemory(int64_t bytes) : bytes_((bytes + 255) / 256 * 256) {
  CheckCuda(cudaMalloc(&data_, bytes_), "cudaMalloc");
  Fill(data_, bytes_, false, 0);
}

void BenchMemory::FillFloats(float value) {
  Fill(data_, bytes_, true, std::bit_cast<uint32_t>(value));
}

Timing Measure(const std::function<void(int)>& run) { return MeasureInTurns({run})[0]; }

std::vector<Timing> MeasureInTurns(const std::vector<std::function<void(int)>>& runs) {
  Events events;
  std::vector<int> launches;
  for (const auto& run : runs) {
    run(0);
    const double us = events.Microseconds(run, 1, 5) / 5;
    launches.push_back(std::clamp(static_cast<int>(kRoundUs / us), 1, kLaunchesMax));
  }
  std::vector<std::vector<double>> rounds(runs.size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < runs.size(); ++i) {
      rounds[i].push_back(events.Microseconds(runs[i], 6 + round * launches[i], launches[i]) /
                          launches[i]);
    }
  }
  std::vector<Timing> timings;
  for (std::vector<double>& of_run : rounds) {
    std::sort(of_run.begin(), of_run.end());
    const double median = of_run[kRounds / 2];
    timings.push_back({median, (of_run.back() - of_run.front()) / median});
  }
  return timings;
}

void Report(const std::string& name, const std::string& conditions, const Timing& timing,
            const std::string& figures) {
  std::printf("%-22s | %-44s | %9.2f us (spread %4.1f %%) | %s\n", name.c_str(), conditions.c_str(),
              timing.median_us, 100 * timing.spread, figures.c_str());
  std::fflush(stdout);
}

std::string Bandwidth(double bytes, const Timing& timing, const Peaks& peaks) {
  const double gbs = bytes / timing.median_us * 1e-3;
  char text[80];
  std::snprintf(text, sizeof(text), "%.0f GB/s, %.0f %% of read peak", gbs,
                100 * gbs / peaks.read_gbs);
  return text;
}

std::string Throughput(double operations, const Timing& timing, double peak_tflops) {
  const double tflops = operations / timing.median_us * 1e-6;
  char text[80];
  if (peak_tflops == 0) {
    std::snprintf(text, sizeof(text), "%.1f TFLOPS", tflops);
  } else {
    std::snprintf(text, sizeof(text), "%.1f TFLOPS, %.0f %% of peak", tflops,
                  100 * tflops / peak_tflops);
  }
  return text;
}

}  // namespace epic::kernels::cuda
