// Timing on the card: device buffers, rounds of launches between two events, and a line per figure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/device/launch.h"

namespace epic::kernels::cuda {

// Device memory filled with reproducible values that are finite in every type.
class BenchMemory {
 public:
  explicit BenchMemory(int64_t bytes);
  ~BenchMemory() { cudaFree(data_); }
  BenchMemory(const BenchMemory&) = delete;
  BenchMemory& operator=(const BenchMemory&) = delete;

  template <typename T>
  T* As(int64_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + offset_bytes);
  }
  int64_t bytes() const { return bytes_; }
  // Every float becomes `value`.
  void FillFloats(float value);
  template <typename T>
  void Set(const std::vector<T>& values) {
    CheckCuda(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              "cudaMemcpy");
  }

 private:
  int64_t bytes_;
  void* data_ = nullptr;
};

struct Timing {
  double median_us = 0;
  double spread = 0;  // (slowest − fastest round)/median
};

// Seven rounds, each of so many launches that it lasts some milliseconds. run(i) is launch i: it
// may go around several copies of its data, so that these come from memory and not from the cache.
Timing Measure(const std::function<void(int)>& run);

// Several candidates, their rounds taken in turns.
std::vector<Timing> MeasureInTurns(const std::vector<std::function<void(int)>>& runs);

// Peaks of this card, measured in this run.
struct Peaks {
  double read_gbs = 0;
  double bf16_tflops = 0;  // 0: no cuBLASLt
  double fp8_tflops = 0;
};

// "name | conditions | µs ± spread | figures".
void Report(const std::string& name, const std::string& conditions, const Timing& timing,
            const std::string& figures);

// "1234 GB/s, 45 % of this run's peak".
std::string Bandwidth(double bytes, const Timing& timing, const Peaks& peaks);
std::string Throughput(double operations, const Timing& timing, double peak_tflops);

}  // namespace epic::kernels::cuda
