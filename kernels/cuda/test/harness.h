// What the tests of CUDA kernels need, and no more, so that they build with a compiler alone. The
// same tests run on the host, emulated under several seeds, and, compiled by nvcc, on the card.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/device/launch.h"
#include "kernels/testing/random.h"

namespace epic::kernels::cuda {

struct TestCase {
  const char* name;
  void (*run)();
};
std::vector<TestCase>& TestCases();
struct TestRegistration {
  TestRegistration(const char* name, void (*run)()) { TestCases().push_back({name, run}); }
};
#define EPIC_KERNEL_TEST(name)                                    \
  static void name();                                             \
  static const TestRegistration registration_##name(#name, name); \
  static void name()

// Counts a failure of the running test and prints the first few.
void ReportFailure(const std::string& what);

inline void Expect(bool condition, const std::string& what) {
  if (!condition) ReportFailure(what);
}

// Compares bits, but any NaN equals any.
template <typename T>
void ExpectSame(const std::vector<T>& actual, const std::vector<T>& expected, const char* what) {
  Expect(actual.size() == expected.size(), std::string(what) + ": sizes differ");
  for (size_t i = 0; i < actual.size() && i < expected.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) continue;
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
      ReportFailure(std::string(what) + "[" + std::to_string(i) + "] is " +
                    std::to_string(actual[i]) + ", not " + std::to_string(expected[i]));
    } else {
      ReportFailure(std::string(what) + "[" + std::to_string(i) + "] differs");
    }
  }
}

// |actual − expected| ≤ tolerance·max(1, |expected|).
inline void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected,
                       float tolerance, const char* what) {
  Expect(actual.size() == expected.size(), std::string(what) + ": sizes differ");
  for (size_t i = 0; i < actual.size() && i < expected.size(); ++i) {
    const float limit = tolerance * std::fmax(1.0f, std::fabs(expected[i]));
    if (!(std::fabs(actual[i] - expected[i]) <= limit)) {
      ReportFailure(std::string(what) + "[" + std::to_string(i) + "] is " +
                    std::to_string(actual[i]) + ", not " + std::to_string(expected[i]));
    }
  }
}

// The emulated tensor core sums K ascending by FP32 multiply-adds, so on the host results are
// compared by bits; the card's sums in an order and a precision of its own.
inline void ExpectProducts(const std::vector<float>& actual, const std::vector<float>& expected,
                           float card_tolerance, const char* what) {
#ifdef __CUDACC__
  ExpectNear(actual, expected, card_tolerance, what);
#else
  ExpectSame(actual, expected, what);
#endif
}

// Device memory of exactly so many values; on the host the address sanitizer guards its ends.
template <typename T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : count_(values.size()) {
#ifdef __CUDACC__
    CheckCuda(cudaMalloc(&data_, Bytes() + 1), "cudaMalloc");
    CheckCuda(cudaMemcpy(data_, values.data(), Bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
#else
    data_ = static_cast<T*>(::operator new(Bytes() + 1));
    if (count_ > 0) std::memcpy(data_, values.data(), Bytes());
#endif
  }
  ~Buffer() {
#ifdef __CUDACC__
    cudaFree(data_);
#else
    ::operator delete(data_);
#endif
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
#ifdef __CUDACC__
    CheckCuda(cudaDeviceSynchronize(), "the kernel");
    CheckCuda(cudaMemcpy(values.data(), data_, Bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
#else
    if (count_ > 0) std::memcpy(values.data(), data_, Bytes());
#endif
    return values;
  }

 private:
  size_t Bytes() const { return count_ * sizeof(T); }
  size_t count_;
  T* data_ = nullptr;
};

// Calls test(stream) for seeds 0 .. count−1; on the card once.
template <typename Test>
void ForSeeds(int count, const Test& test) {
#ifdef __CUDACC__
  (void)count;
  test(Stream{});
#else
  for (int seed = 0; seed < count; ++seed) test(Stream{static_cast<uint64_t>(seed)});
#endif
}

}  // namespace epic::kernels::cuda
