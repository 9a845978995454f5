#include "kernels/cuda/test/harness.h"

#include <exception>

#include "kernels/flush_denormals.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kSkipped = 77;  // ctest's SKIP_RETURN_CODE
constexpr int kPrintedMax = 5;
int failures = 0;

// False, with a line that says so, where there is no card to run on.
bool CanRun() {
#ifdef __CUDACC__
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("skipped: no CUDA device\n");
    return false;
  }
  cudaDeviceProp device;
  CheckCuda(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  if (device.major != 9) {
    std::printf("skipped: %s is not of compute capability 9.0\n", device.name);
    return false;
  }
  std::printf("on %s\n", device.name);
#endif
  return true;
}

bool RunCase(const TestCase& test) {
  failures = 0;
  try {
    test.run();
  } catch (const std::exception& error) {
    ReportFailure(error.what());
  }
  std::printf("%s %s\n", failures == 0 ? "passed" : "FAILED", test.name);
  return failures == 0;
}

}  // namespace

std::vector<TestCase>& TestCases() {
  static std::vector<TestCase> cases;
  return cases;
}

void ReportFailure(const std::string& what) {
  if (++failures <= kPrintedMax) std::printf("  %s\n", what.c_str());
}

}  // namespace epic::kernels::cuda

// Arguments: parts of names of the tests to run; none: all.
int main(int argc, char** argv) {
  using namespace epic::kernels::cuda;  // NOLINT
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (!CanRun()) return kSkipped;
  const epic::kernels::ScopedFlushDenormals flush;
  int failed = 0;
  int run = 0;
  for (const TestCase& test : TestCases()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= std::strstr(test.name, argv[i]) != nullptr;
    if (!wanted) continue;
    ++run;
    failed += RunCase(test) ? 0 : 1;
  }
  std::printf("%d of %d tests failed\n", failed, run);
  return failed > 0 || run == 0 ? 1 : 0;
}
